"""The work of a probe: the real training loop on the real data, timed from outside, in a process that does nothing else.

    python -m atonce.planning.probe request.json

It trains twice, each for a moment: with a few images a step, then with as many as were asked for or as time allows. What
depends on the batch follows from both. Lines of JSON go to stdout; the last one holds the measurement or an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from atonce.core.errors import AtonceError
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel
from atonce.planning.machine import device_peak, peak_memory, release_memory, reset_peak
from atonce.training.loop import Run, fit
from atonce.training.options import Options, pick_device
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder
from atonce.training.sinks import Events

_STEPS = 4096  # of the probe's budget: it is never reached
_SAMPLES = 64  # images of a call in sampling, at most
_EVALUATED = 2  # samples of the probe's evaluation: those of a real one are reckoned from single calls
_GIVE_UP = 900  # seconds after which something hangs


@dataclasses.dataclass
class _Clock:
    """What the loop's log lines say about time. A line follows each step, and one each evaluation."""

    seconds: float
    steps: int  # at least so many, not counting the first
    say: Callable[[float], None]
    done: float  # share of the probe that lies behind
    part: float  # share of the probe that this training is
    start: float = dataclasses.field(default_factory=time.perf_counter)
    lines: list[tuple[float, int, bool]] = dataclasses.field(default_factory=list)

    def __call__(self, line: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.lines.append((now, line["images"], "loss" not in line))
        self.say(self.done + self.part * min(1.0, (now - self.start) / self.seconds))
        evaluated = any(is_evaluation for _, _, is_evaluation in self.lines)
        if evaluated and len(self.times()) >= self.steps and now - self.start >= self.seconds:
            signal.raise_signal(signal.SIGTERM)  # the loop's own way to stop: it writes a checkpoint and returns

    def times(self) -> list[float]:
        """Seconds of each step after the first log line."""
        found = []
        for (before, images, _), (after, more, is_evaluation) in zip(self.lines, self.lines[1:]):
            if not is_evaluation:
                found.append((after - before) / (more - images))
        return found

    def evaluation(self) -> float:
        """Seconds of the evaluation; its mark is one of the log's too."""
        return next((now - self.lines[i - 1][0] for i, (now, _, it) in enumerate(self.lines) if it and i), 0.0)


def main(file: str) -> int:
    """Measure what a file asks for.

    Args:
        file: JSON with ``recipe``, ``data``, ``labels``, ``batch``, ``seconds``, ``device``, ``precision``, ``threads``,
            ``teacher`` (a folder or null) and ``started`` (when the process was started, as ``time.time``).

    Returns:
        The exit status.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(_GIVE_UP)
    try:
        request = json.loads(Path(file).read_text(encoding="utf-8"))
        _say({"result": measure(request)})
    except AtonceError as error:
        _say({"error": str(error)})
        return 2
    return 0


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train for a moment, twice, and say what it took.

    Args:
        request: As for :func:`main`.

    Returns:
        JSON values; the fields of :class:`atonce.planning.measure.Measurement`.
    """
    if threads := request.get("threads"):
        torch.set_num_threads(threads)
    device = pick_device(request["device"])
    data = open_data(request["data"])
    if request["labels"]:
        data = dataclasses.replace(data, label_names=tuple(request["labels"]))
    teacher = None if request["teacher"] is None else ConsistencyModel.from_pretrained(request["teacher"])
    recipe, batch, seconds = Recipe.from_dict(request["recipe"]), int(request["batch"]), float(request["seconds"])
    floor = peak_memory()
    first, out = min(_first(data.shape[1]), batch), dict[str, Any](batches=[], steps=[], memory=[], device_memory=[])
    with tempfile.TemporaryDirectory(prefix="atonce-plan-") as folder:

        def train(size: int, share: float, evaluate_after: int, done: float) -> tuple[_Clock, Run, float]:
            """One training; the last value is the time from the last log line to the end: a checkpoint, the averaged model."""
            release_memory()
            reset_peak(device)
            own = dataclasses.replace(recipe, batch=size, images=max(recipe.images, _STEPS * size))
            every = 8 * size if device.type == "cuda" else size  # a log line makes a GPU wait
            say = functools.partial(_share, size)
            clock = _Clock(share * seconds, 2, say, done, share)
            options = Options(
                device=request["device"],
                precision=request["precision"],
                log_every=every,
                evaluate_every=evaluate_after * every,
                evaluate_images=_EVALUATED,
                checkpoint_seconds=1e9,
                quiet=True,
            )
            start, taught = (teacher if name else None for name in (recipe.init, recipe.teacher))
            run = fit(own, data, Path(folder) / f"{done}", options=options, init=start, teacher=taught, callback=clock)
            return clock, run, time.perf_counter() - clock.lines[-1][0]

        clock, run, tail = train(first, 0.25, 2, 0.0)
        ready, per_image = clock.lines[0][0], statistics.median(clock.times())
        _note(out, clock, first, device)
        second = _affordable(first, batch, per_image, 0.75 * seconds)
        if second == first:  # a small batch: once more, longer and with an evaluation
            out |= {"batches": [], "steps": [], "memory": [], "device_memory": []}
        del run  # its memory is not the next one's
        clock, run, tail = train(second, 0.75, max(2, round(0.4 * seconds / (second * per_image))), 0.25)
        _note(out, clock, second, device)
        samples = int(min(_SAMPLES, max(2, 0.15 * seconds / (0.25 * per_image))))  # a call costs a quarter of a training image
        out |= _rest(run, clock, samples, Path(folder))
    if device.type != "cuda":  # every step has written a line, which a run does two hundred times
        out["steps"] = [max(0.5 * step, step - out["log"]) for step in out["steps"]]
    startup = time.time() - request["started"] - (time.perf_counter() - ready)
    return out | {"floor": floor, "startup": startup, "checkpoint": tail}


def _first(side: int) -> int:
    """Images a step of the first training: few enough to be quick, enough for more than the overhead of a call."""
    return 16 if side <= 16 else 8 if side <= 32 else 4


def _share(size: int, share: float) -> None:
    _say({"batch": size, "share": round(share, 2)})


def _note(out: dict[str, Any], clock: _Clock, batch: int, device: torch.device) -> None:
    times = sorted(clock.times())
    low, high = (times[round(q * (len(times) - 1))] for q in (0.25, 0.75))
    out["batches"].append(batch)
    out["steps"].append(statistics.median(times) * batch)
    out["quartiles"] = [low * batch, high * batch]
    out["memory"].append(peak_memory())
    out["device_memory"].append(device_peak(device))


def _affordable(first: int, batch: int, per_image: float, seconds: float) -> int:
    """The largest step that can be done five times, by doubling; twice the first at least, so that there are two."""
    size = first
    while size < batch and (size == first or 5 * 2 * size * per_image <= seconds):
        size = min(2 * size, batch)
    return size


def _rest(run: Run, clock: _Clock, samples: int, folder: Path) -> dict[str, Any]:
    """What happens now and then in a run: an evaluation without its samples, a sample, a saved model, a log line; and sizes."""
    steps = next((int(line["steps"]) for line in RunFolder(run.folder).read_log() if "grad_norm_by_sigma" in line), 1)
    halving = run.model.config.sampler == "euler"  # a student of progressive distillation takes the steps it has learnt, only
    calls = 2 * steps - 1 if run.model.kind == "denoiser" and not halving else steps
    evaluated = min(_timed(lambda: run.model.sample(_EVALUATED, steps)) for _ in range(2))
    some, each = (max(_EVALUATED, samples // steps), steps) if halving else (samples, 1)
    call = min(_timed(lambda: run.model.sample(some, each)) for _ in range(2)) / (some * each)
    start = time.perf_counter()
    run.model.save_pretrained(folder / "model")
    saved = time.perf_counter() - start
    there = RunFolder(run.folder)
    lines = there.read_log()
    events = _size(there.tensorboard) / max(1, len(lines))
    log_bytes = there.log_file.stat().st_size / max(1, len(lines))
    other = RunFolder(folder / "log")
    other.path.mkdir()
    with Events(other.tensorboard, 0) as written:
        start = time.perf_counter()
        for line in (lines * 20)[:20]:
            other.append(line)
            written.write(line)
        log = (time.perf_counter() - start) / 20
    return {
        "evaluation": max(0.0, clock.evaluation() - evaluated),
        "sample": call,
        "calls": calls,
        "save": saved,
        "log": log,
        "checkpoint_bytes": _size(there.checkpoints),
        "model_bytes": _size(folder / "model"),
        "picture_bytes": _size(there.samples),
        "line_bytes": log_bytes + events,
        "parameters": sum(p.numel() for p in run.model.network.parameters()),
        "precision": next((line["precision"] for line in reversed(lines) if "precision" in line), "float32"),
        "tensorboard": events > 0,
    }


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
