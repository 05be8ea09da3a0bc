"""The loop: one engine, one clock, and what happens when the clock passes a mark."""

from __future__ import annotations

import contextlib
import datetime
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atonce.core.distribution import World, all_sum, barrier, join_world
from atonce.core.errors import InputError, TrainingError
from atonce.core.images import save_png
from atonce.core.progress import Progress
from atonce.core.records import Record
from atonce.core.version import VERSION
from atonce.data.dataset import ImageData, require_labels
from atonce.data.loader import DeviceData
from atonce.model import ConsistencyModel, ModelConfig
from atonce.training.checkpoint import newest_checkpoint, save_checkpoint
from atonce.training.engine import Engine
from atonce.training.monitor import SEED, Monitor
from atonce.training.options import Options, pick_device
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder, replace_folder
from atonce.training.schedule import learning_rate, stage_at
from atonce.training.sinks import Events

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
    options: Options = Options(),
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
    world = join_world(pick_device(options.device))
    resolved = resolve(recipe, data)
    if init is not None:
        _check_init(init, resolved)
    if teacher is not None and (teacher.kind != "denoiser" or teacher.shape != data.shape):
        raise InputError(
            f"the teacher is a {teacher.kind} model for {teacher.shape} images; needed is a denoiser for {data.shape}: train one with diffusion"
        )
    folder = RunFolder(out)
    if world.is_main:
        folder.claim(resolved, _facts(data), resume)
    barrier()
    return _Loop(resolved, data, folder, world, options, init, teacher, callback).run()


def resolve(recipe: Recipe, data: ImageData) -> Recipe:
    """The recipe with all that depends on the data filled in.

    Raises:
        InputError: The data do not fit the recipe (size, shape, labels).
    """
    channels, height, width = data.shape
    if height != width:
        raise InputError(f"{data.name} has images of {height}x{width}: networks take squares; give a size to crop and resize to")
    if recipe.conditional:
        require_labels(data)
    return recipe.resolve(height, channels, data.num_classes, data.statistics().std)


class _Loop:
    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        folder: RunFolder,
        world: World,
        options: Options,
        init: ConsistencyModel | None,
        teacher: ConsistencyModel | None,
        callback: Callback | None,
    ) -> None:
        self.recipe, self.data, self.folder, self.world, self.options, self.callback = recipe, data, folder, world, options, callback
        loader = DeviceData(data, seed=recipe.seed, device=world.device, flip=recipe.flip)
        weights = None if init is None else init.network.state_dict()
        denoiser = None if teacher is None else teacher.to(world.device)
        self.notes: list[str] = []
        self.engine = Engine(recipe, loader, world, options, weights, denoiser, self.note)
        self.best = float("inf")
        self.progress: Progress | None = None
        total = recipe.steps * recipe.batch
        self.total = total
        self.log_every = _whole(options.log_every or total // 200, recipe.batch)
        self.evaluate_every = _whole(options.evaluate_every or total // 12, recipe.batch)
        self.started = time.monotonic()
        self.last_checkpoint: Path | None = None

    def note(self, text: str) -> None:
        """A line for people: on the display, and in the next log line."""
        self.notes.append(text)
        if getattr(self, "progress", None) is not None:
            self.progress.write(text)  # type: ignore[union-attr]

    def run(self) -> Run:
        self._resume()
        engine, main = self.engine, self.world.is_main
        stopped = False
        monitor = Monitor.of(self.data, self.options.evaluate_images) if main else None
        self.events = Events(self.folder.tensorboard, engine.images_seen) if main else None
        self.progress = Progress(
            "training", self.total, "img", start=engine.images_seen, quiet=self.options.quiet or not main
        )
        with _signals() as asked, self.progress as progress:
            saved = time.monotonic()
            while engine.images_seen < self.total and not stopped:
                engine.step()
                seen = engine.images_seen
                at_log = seen % self.log_every == 0 or seen >= self.total
                if at_log:
                    self._log(seen)
                if seen % self.evaluate_every == 0 or seen >= self.total:
                    if monitor is not None:
                        self._evaluate(seen, monitor)
                    barrier()
                progress.update(seen, text=self._status())
                if self.world.size == 1 or at_log:
                    stopped = self._agree(asked.is_set())
                    due = time.monotonic() - saved >= self.options.checkpoint_seconds
                    if main and (due or stopped or seen >= self.total):
                        self._checkpoint(seen)
                        saved = time.monotonic()
        model = self.model()
        finished = engine.images_seen >= self.total
        if main and finished:
            self._save_model(model, self.folder.model)
        if self.events is not None:
            self.events.close()
        barrier()
        return Run(model, self.folder.path, model.records, engine.images_seen, finished)

    def model(self) -> ConsistencyModel:
        """The model of the averaged weights, with the others beside them."""
        recipe, engine = self.recipe, self.engine
        names = list(engine.averages)
        config = ModelConfig(
            network=recipe.network,  # type: ignore[arg-type]
            preconditioning=engine.preconditioning,
            kind="denoiser" if recipe.pairs == "denoising" else "consistency",
            sigma_min=recipe.sigma_min,
            sigma_max=recipe.sigma_max,
            labels=self.data.label_names if recipe.conditional else None,
        )
        card = {
            "name": self.folder.path.name,
            "method": recipe.method,
            "data": f"{self.data.name} ({len(self.data):,} images, sha256 {self.data.digest()[:16]})",
            "images_seen": engine.images_seen,
            "recipe_digest": recipe.digest(),
            "recipe": recipe.as_dict(),
        }
        model = ConsistencyModel(config, ema={name: engine.weights(name) for name in names[1:]}, card=card)
        model.network.load_state_dict(engine.weights(names[0]))
        return model.to(self.world.device)

    # ---- marks on the clock

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

    def _evaluate(self, seen: int, monitor: Monitor) -> None:
        model = self.model()
        steps = 8 if model.kind == "denoiser" else 1
        value, picture = monitor.measure(lambda first, n: model.sample(n, steps, SEED, first=first))
        better = value < self.best
        self.best = min(self.best, value)
        save_png(self.folder.samples / f"{seen:012d}.png", picture)
        if better:
            self._save_model(model, self.folder.best)
        self._write(
            {"images": seen, monitor.name: value, "best": better, "steps": steps, "grad_norm_by_sigma": self.engine.gradient_by_sigma()}
        )
        self.quality = f"distance {value:.3g}"

    def _write(self, line: dict[str, Any]) -> None:
        if not self.world.is_main:
            self.notes.clear()
            return
        if self.notes:
            line |= {"notes": self.notes.copy()}
            self.notes.clear()
        line |= {"seconds": round(time.monotonic() - self.started, 3), "rate": self.progress.rate if self.progress else None}
        self.folder.append(line)
        if self.events is not None:
            self.events.write(line)
        if self.callback is not None:
            self.callback(line)

    def _status(self) -> str:
        return "  ".join(filter(None, [getattr(self, "status", ""), getattr(self, "quality", "")]))

    def _checkpoint(self, seen: int) -> None:
        if not bool(torch.isfinite(self.engine.meters).all()):
            self._fail(TrainingError(f"the loss or gradient is not finite (NaN or infinite) at {seen} images"))
        facts = self.engine.facts() | {"log_bytes": self.folder.log_size(), "best": self.best, "notes": self.notes}
        facts |= {"recipe": self.recipe.digest(), "threads": torch.get_num_threads()}
        self.last_checkpoint = save_checkpoint(self.folder.checkpoints, seen, self.engine.tensors(), facts, self.options.keep)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder.checkpoints)
        if checkpoint is None:
            if self.world.is_main:
                self.folder.cut_log(0)
            return
        facts = checkpoint.facts
        if facts.get("recipe") != self.recipe.digest():
            raise InputError(f"checkpoint {checkpoint.path} belongs to another recipe: choose another folder")
        self.engine.load(checkpoint.images_seen, checkpoint.tensors, facts)
        self.best, self.last_checkpoint = float(facts["best"]), checkpoint.path
        self.notes[:] = facts["notes"]
        if self.world.is_main:
            self.folder.cut_log(int(facts["log_bytes"]))

    def _agree(self, asked: bool) -> bool:
        """Whether any process was asked to stop."""
        if self.world.size == 1:
            return asked
        return bool(all_sum(torch.tensor(float(asked))) > 0)

    def _fail(self, error: TrainingError) -> None:
        good = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is no checkpoint yet"
        raise TrainingError(f"{error}: {good}; a lower lr or precision fp32 often helps") from error

    def _save_model(self, model: ConsistencyModel, where: Path) -> None:
        temporary = where.with_name(f".{where.name}.new")
        if temporary.exists():
            import shutil

            shutil.rmtree(temporary)
        model.save_pretrained(temporary)
        replace_folder(temporary, where)


def _whole(images: int, batch: int) -> int:
    """``images`` rounded to a whole number of batches, at least one."""
    return max(1, round(images / batch)) * batch


def _facts(data: ImageData) -> dict[str, Any]:
    return {
        "data": {"name": data.name, "source": data.source, "digest": data.digest(), "count": len(data), "shape": list(data.shape)},
        "versions": {"atonce": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _check_init(init: ConsistencyModel, recipe: Recipe) -> None:
    theirs, ours = init.config.network, recipe.network
    if theirs != ours:
        differs = [f for f in vars(ours) if getattr(theirs, f, None) != getattr(ours, f)]
        raise InputError(
            f"init has another network ({', '.join(f'{f}: {getattr(theirs, f)} there, {getattr(ours, f)} here' for f in differs)}): "
            "give the recipe the same network"
        )


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C ask for a stop at the next step; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
