"""The loop: one engine, one clock, and what happens when the clock passes a mark."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from atonce.core.distribution import World, all_equal, all_sum, barrier, join_world
from atonce.core.errors import AtonceError, InputError, ModelFileError, TrainingError
from atonce.core.images import save_png
from atonce.core.memory import keep_freed_memory
from atonce.core.progress import Progress
from atonce.core.records import Record
from atonce.data.dataset import ImageData
from atonce.data.loader import DeviceData
from atonce.evaluation.extractors import seen_digests
from atonce.model import ConsistencyModel
from atonce.objectives.perceptual import NAMES as PERCEPTUAL
from atonce.objectives.perceptual import FeatureDistance, open_distance
from atonce.training.checkpoint import newest_checkpoint, save_checkpoint
from atonce.training.engine import Engine
from atonce.training.monitor import SEED, Monitor
from atonce.training.options import Options, exact_float32, pick_device
from atonce.training.posthoc import save_snapshot, snapshot_due
from atonce.training.product import model_config, model_facts
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder, empty_beside, replace_folder
from atonce.training.schedule import learning_rate, stage_at
from atonce.training.sinks import Events
from atonce.training.start import resolve, run_facts, starting_weights, transfers
from atonce.training.stopping import stop_requests
from atonce.training.teacher import check_teacher

Callback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run.

    Attributes:
        model: The model with the last averaged weights.
        folder: The run folder.
        records: Records of the model.
        images_seen: Where the clock stands.
        finished: Whether the budget is used up; ``False`` after SIGTERM or Ctrl-C.
    """

    model: ConsistencyModel
    folder: Path
    records: list[Record]
    images_seen: int
    finished: bool


def fit(
    recipe: Recipe,
    data: ImageData,
    out: Path | str,
    *,
    resume: bool = True,
    options: Options | None = None,
    init: ConsistencyModel | None = None,
    teacher: ConsistencyModel | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train a model. The same call on the same folder continues where the last checkpoint stands.

    Args:
        recipe: What is learnt.
        data: Training images.
        out: The run folder.
        resume: Whether a run that is there may be continued.
        options: Settings of the machine.
        init: Model whose weights start the run.
        teacher: Denoiser that gives the pairs, for distillation.
        callback: Called with each log line.

    Returns:
        The run.

    Raises:
        InputError: Recipe, data, folder and models do not fit together. Nothing has been done then.
        TrainingError: The loss is not finite; the message names the last good checkpoint.
        StorageError: The disk is full or not writable; what was written before is whole.
    """
    options = options or Options()
    world = join_world(pick_device(options.device))
    if world.device.type == "cpu":
        keep_freed_memory()
    else:
        exact_float32()
    resolved = resolve(recipe, data, init)
    check_teacher(teacher, resolved, data)  # before the weights: where both are one model, its words are the plainer ones
    start = None if init is None else starting_weights(init, resolved)
    if resolved.distance in PERCEPTUAL:
        open_distance(resolved.distance, channels=data.shape[0])  # says what is missing before the folder is made
    if not all_equal((resolved.digest(), data.digest())):
        raise InputError("the processes were given different recipes or data: start all with the same command")
    folder = RunFolder(out)
    with contextlib.ExitStack() as held:
        problem: AtonceError | None = None
        if world.is_main:
            try:
                folder.claim(resolved, run_facts(data), resume)
                held.enter_context(folder.hold())
            except AtonceError as error:
                problem = error
        if all_sum(torch.tensor(float(problem is not None))) > 0:
            raise problem or InputError("process 0 cannot use the run folder; its message says why")
        seen = seen_digests(getattr(init, "card", None)) | seen_digests(getattr(teacher, "card", None))
        notes = [] if init is None else transfers(init, resolved, data)
        return _Loop(resolved, data, folder, world, options, start, teacher, seen, notes, callback).run()


class _Stopped(Exception):
    """A stop was asked for in the middle of an evaluation."""


class _Loop:
    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        folder: RunFolder,
        world: World,
        options: Options,
        start: dict[str, Tensor] | None,
        teacher: ConsistencyModel | None,
        seen: frozenset[str],
        transfers: list[str],
        callback: Callback | None,
    ) -> None:
        self.recipe, self.data, self.folder, self.world = recipe, data, folder, world
        self.options, self.callback, self.seen, self.transfers = options, callback, seen, transfers
        self.progress: Progress | None = None
        self.events: Events | None = None
        self.monitor: Monitor | None = None
        self.notes: list[str] = []
        self.status = self.quality = ""
        loader = DeviceData(data, seed=recipe.seed, device=world.device, flip=recipe.flip)
        distilled = None if teacher is None else teacher.to(world.device)
        self.engine = Engine(recipe, loader, world, options, start, distilled, self.note)
        self.best = float("inf")
        self.total = recipe.steps * recipe.batch
        self.log_every = _whole(options.log_every or self.total // 200, recipe.batch)
        # By default not so often that sampling costs more than a few percent of training.
        often = max(self.total // 12, 8 * options.evaluate_images)
        self.evaluate_every = _whole(options.evaluate_every or often, recipe.batch)
        self.started = time.monotonic()  # less the time of the parts before this one
        self.last_checkpoint: Path | None = None
        self.due = False  # whether the evaluation of the mark where the clock stands is still to be done

    def note(self, text: str) -> None:
        """A line for people: on the display, and in the next log line."""
        self.notes.append(text)
        if self.progress is not None:
            self.progress.write(text)

    def run(self) -> Run:
        self._resume()
        main, engine = self.world.is_main, self.engine
        todo = self.due or engine.images_seen < self.total
        if todo:
            with (
                stop_requests() as asked,
                Events(self.folder.tensorboard, engine.images_seen) if main else contextlib.nullcontext() as self.events,
                self._display() as self.progress,
            ):
                self._train(asked)
        finished = engine.images_seen >= self.total and not self.due
        model = None
        if main and finished:
            model = None if todo else self._saved_model()
            if model is None:
                model = self.model()
                self._save_model(model, self.folder.model)
        model = model or self.model()
        barrier()
        return Run(model, self.folder.path, model.records, engine.images_seen, finished)

    def _train(self, asked: threading.Event) -> None:
        engine, main, alone = self.engine, self.world.is_main, self.world.size == 1
        if main:
            self.monitor = Monitor.of(self.data, self.options.evaluate_images)
        for text in self.transfers if engine.images_seen == 0 else ():
            self.note(text)
        saved, stopped = time.monotonic(), False
        while not stopped and (self.due or engine.images_seen < self.total):
            at_log = False
            if not self.due:
                engine.step()
                at_log = self._at(self.log_every)
                self.due = self._at(self.evaluate_every)
                self._snapshot(engine.images_seen)
            seen, at_mark = engine.images_seen, at_log or self.due
            if at_log:
                self._log(seen)
            if self.due:
                self._evaluate(seen, asked)
                barrier()
            if self.progress is not None:
                self.progress.update(seen, text="  ".join(filter(None, [self.status, self.quality])))
            # Several processes on CUDA would wait for each other here, so there they agree at marks only.
            if alone or at_mark or self.world.device.type == "cpu":
                late = time.monotonic() - saved >= self.options.checkpoint_seconds
                stopped, late = self._agree(asked.is_set(), late)
                if late or stopped or seen >= self.total:
                    self._checkpoint(seen)
                    saved = time.monotonic()

    def model(self) -> ConsistencyModel:
        """The model of the averaged weights, with the others beside them."""
        engine = self.engine
        config = model_config(self.recipe, engine.preconditioning, self.data.label_names)
        names = [*engine.averages, *engine.kept]
        stage = stage_at(self.recipe, max(engine.images_seen - self.recipe.batch, 0))  # of the last batch
        card = {
            "name": self.folder.path.resolve().name,
            **model_facts(self.recipe, stage.points - 1),
            "data": f"{self.data.name} ({len(self.data):,} images, sha256 {self.data.digest()[:16]})",
            "images_seen": engine.images_seen,
        }
        if self.transfers:
            card["transfer"] = "; ".join(self.transfers)
        if seen := sorted(self.seen | ({engine.distance.digest} if isinstance(engine.distance, FeatureDistance) else set())):
            card["extractors_seen"] = seen
        model = ConsistencyModel(config, ema={name: engine.weights(name) for name in names[1:]}, card=card)
        model.network.load_state_dict(engine.weights(names[0]))
        return model.to(self.world.device)

    # ---- marks on the clock

    def _at(self, every: int) -> bool:
        """Whether the clock stands at a mark of those that come ``every`` so many images, or at the end."""
        return self.engine.images_seen % every == 0 or self.engine.images_seen >= self.total

    def _log(self, seen: int) -> None:
        try:
            values = self.engine.read_meters()
        except TrainingError as error:
            self._fail(error)
        stage = stage_at(self.recipe, seen - self.recipe.batch)
        line: dict[str, Any] = {"images": seen, **values, "lr": learning_rate(self.recipe, seen - self.recipe.batch)}
        line |= {"N": stage.points or None, "stage": stage.index, "precision": str(self.engine.dtype).removeprefix("torch.")}
        self.status = f"loss {values['loss']:.3g}" + (f"  N {stage.points}" if stage.points else "")
        self._write(line)

    def _evaluate(self, seen: int, asked: threading.Event) -> None:
        """Samples, distance and picture; ``due`` stays on where a stop is asked for, and the resumed run begins with this."""
        self._check_finite(seen)
        if self.monitor is None:
            self.due = False  # process 0 knows better; what it knows is in the checkpoint
            return
        model = self.model()
        steps = 1
        if model.kind == "denoiser":  # a student of progressive distillation has steps of its own
            stage = stage_at(self.recipe, seen - self.recipe.batch)  # of the last batch
            steps = stage.points - 1 if self.recipe.pairs == "halving" else 8

        def sample(first: int, n: int) -> Tensor:
            if asked.is_set():
                raise _Stopped
            return model.sample(n, steps, SEED, first=first)

        try:
            value, picture = self.monitor.measure(sample)
        except _Stopped:
            return
        # Students of progressive distillation have fewer and fewer steps; the last one is the model that is wanted.
        better = value < self.best or self.recipe.pairs == "halving"
        self.best = min(self.best, value)
        save_png(self.folder.samples / f"{seen:012d}.png", picture)
        if better:
            self._save_model(model, self.folder.best)
        line: dict[str, Any] = {"images": seen, self.monitor.name: value, "best": better, "steps": steps}
        self._write(line | {"grad_norm_by_sigma": self.engine.gradient_by_sigma()})
        self.quality = f"distance {value:.3g}"
        self.due = False

    def _snapshot(self, seen: int) -> None:
        """Power-function averages as they stand now and then, from which any other width can be made after the training."""
        powers = {name: rate for name, rate in self.recipe.averages.items() if rate.kind == "power"}
        batch, count = self.recipe.batch, self.options.snapshots
        if powers and self.world.is_main and snapshot_due(seen, batch=batch, total=self.total, count=count):
            for name, rate in powers.items():
                save_snapshot(self.folder.snapshots, seen, rate, self.engine.weights(name))

    def _write(self, line: dict[str, Any]) -> None:
        notes, self.notes = self.notes, []
        if not self.world.is_main:
            return
        if notes:
            line |= {"notes": notes}
        line |= {"seconds": round(self._seconds(), 3), "rate": self.progress.rate if self.progress else None}
        self.folder.append(line)
        if self.events is not None:
            self.events.write(line)
        if self.callback is not None:
            self.callback(line)

    def _checkpoint(self, seen: int) -> None:
        self._check_finite(seen)
        if self.world.size > 1:  # what the others have counted since the last line goes into the file, once
            counts = all_sum(self.engine.meters[:-1])
            self.engine.meters[:-1] = counts if self.world.is_main else 0.0
        if not self.world.is_main:
            return
        facts = self.engine.facts() | {"log_bytes": self.folder.log_size(), "best": self.best, "notes": self.notes}
        facts |= {"recipe": self.recipe.digest(), "due": self.due, "seconds": self._seconds()}
        facts |= {"threads": torch.get_num_threads()}
        self.last_checkpoint = save_checkpoint(self.folder.checkpoints, seen, self.engine.tensors(), facts, self.options.keep)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder.checkpoints)
        facts: dict[str, Any] = {}
        if checkpoint is not None:
            facts = checkpoint.facts
            if facts.get("recipe") != self.recipe.digest():
                raise InputError(f"checkpoint {checkpoint.path} belongs to another recipe: choose another folder")
            try:
                self.engine.load(checkpoint.images_seen, checkpoint.tensors, facts)
                self.best, self.notes[:] = float(facts["best"]), facts["notes"]
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise ModelFileError(
                    f"checkpoint {checkpoint.path} does not fit this version of atonce ({error!r}): choose another folder"
                ) from error
            if self.options.precision == "fp32":
                self.engine.dtype = torch.float32
            self.due, self.last_checkpoint = bool(facts.get("due", False)), checkpoint.path
            self.started -= float(facts.get("seconds", 0.0))
        if self.world.is_main:
            self.folder.tidy()
            self.folder.cut_log(int(facts.get("log_bytes", 0)))
        else:
            self.engine.meters[:-1] = 0.0  # the counts are process 0's

    def _agree(self, asked: bool, late: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether process 0 finds that a checkpoint is due."""
        if self.world.size == 1:
            return asked, late
        flags = all_sum(torch.tensor([float(asked), float(late and self.world.is_main)]))
        return bool(flags[0] > 0), bool(flags[1] > 0)

    def _check_finite(self, seen: int) -> None:
        """Neither a checkpoint nor a picture is made of a run that is beyond help."""
        for name, value in self.engine.tensors().items():
            if not bool(torch.isfinite(value).all()):
                what = "loss or gradient" if name == "meters" else f"state of the {name.split('/')[0]}"
                self._fail(TrainingError(f"the {what} is not finite (NaN or infinite) at {seen} images"))

    def _fail(self, error: TrainingError) -> NoReturn:
        good = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is no checkpoint yet"
        raise TrainingError(f"{error}: {good}; a lower lr or precision fp32 often helps") from error

    def _save_model(self, model: ConsistencyModel, where: Path) -> None:
        temporary = empty_beside(where)
        model.save_pretrained(temporary)
        replace_folder(temporary, where)

    def _saved_model(self) -> ConsistencyModel | None:
        """The model folder of a run that was finished before, with the records and time points it has got since."""
        try:
            return ConsistencyModel.from_pretrained(self.folder.model).to(self.world.device)
        except ModelFileError:
            return None

    def _display(self) -> Progress:
        quiet = self.options.quiet or not self.world.is_main
        return Progress("training", self.total, "img", start=self.engine.images_seen, quiet=quiet)

    def _seconds(self) -> float:
        return time.monotonic() - self.started


def _whole(images: int, batch: int) -> int:
    """``images`` rounded to a whole number of batches, at least one."""
    return max(1, round(images / batch)) * batch
