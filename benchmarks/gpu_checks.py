"""Checks that need the device: each passes, fails or is skipped, and leaves its numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_parts import read_parts, unpack
from gpu_state import Limits, bring_back, unpack_job
from gpu_tools import Notebook, arithmetic, deterministic, relative, say
from torch import Tensor

import atonce
import atonce.training.terms as terms_module
from atonce.core.distribution import join_world
from atonce.core.files import write_json
from atonce.core.streams import Stream, bits, dropout_masks, normal
from atonce.data.loader import DeviceData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs
from atonce.training.start import resolve, starting_weights

ROOT = Path(__file__).resolve().parent.parent
SAME_SAMPLE = 1e-4  # largest difference of a sample, CPU against device
SAME_STEP = 1e-3  # relative difference of a gradient, compiled against eager


class Failed(Exception):
    """A check found something wrong."""


class Skipped(Exception):
    """A check cannot be made here."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        device: The device that is checked.
        scratch: A folder for runs.
        compiled: Whether torch.compile is among what is checked.
        quick: Whether to take few images and steps: the machinery is tried, not the device.
        notes: Where the results go, with the clock.
        engines: Compiled engines, since compiling takes long.
    """

    device: torch.device
    scratch: Path
    compiled: bool
    quick: bool
    notes: Notebook
    engines: dict[str, Engine] = field(default_factory=dict)


def run_checks(device: str, notes: Notebook, *, compiled: bool = True, tests: bool = True, quick: bool = False) -> None:
    """All checks, in the order of their worth, until the time is over.

    Args:
        device: ``cuda``, or ``cpu`` to try the machinery.
        notes: Where the results go, with the clock.
        compiled: Whether to check torch.compile, which takes long.
        tests: Whether to run the tests that are marked ``cuda``.
        quick: Whether to try the machinery only.
    """
    with tempfile.TemporaryDirectory(prefix="atonce-checks-") as scratch:
        setting = Setting(torch.device(device), Path(scratch), compiled, quick, notes)
        for name, check in CHECKS.items():
            if check is marked_tests and not tests:
                continue
            if notes.left <= 0:
                notes.skip(name, "no time left")
                continue
            start, result = time.perf_counter(), "pass"
            found: dict[str, Any] = {}
            try:
                check(setting, found)
            except Skipped as reason:
                result, found["why"] = "skip", str(reason)
            except Failed as reason:
                result, found["why"] = "fail", str(reason)
            except Exception as error:
                result, found["why"] = "fail", f"{type(error).__name__}: {error}"[:2000]
                say(traceback.format_exc())
            seconds = round(time.perf_counter() - start, 1)
            notes.put(name, {"result": result, "seconds": seconds, "what": (check.__doc__ or "").split("\n")[0], **found})
            say(f"check {name}: {result} in {seconds} s{': ' + found['why'] if 'why' in found else ''}")


def streams(setting: Setting, found: dict[str, Any]) -> None:
    """Random bits and dropout masks are the same to the last bit as on the CPU, normal numbers to 1e-6."""
    index = torch.tensor([0, 1, 77, 2**31 + 5, 2**40 + 1])
    there = index.to(setting.device)
    found["bits equal"] = torch.equal(bits(7, index, 999, Stream.NOISE), bits(7, there, 999, Stream.NOISE).cpu())
    ours, theirs = (dropout_masks(7, i, [1000, 37], 0.3) for i in (index, there))
    found["masks equal"] = all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))
    a, b = (normal(7, i, (3, 32, 32), Stream.NOISE) for i in (index, there))
    found["normal, largest difference"] = float((a - b.cpu()).abs().max())
    if not found["bits equal"] or not found["masks equal"] or found["normal, largest difference"] > 1e-6:
        raise Failed("numbers drawn on the device are not those of the CPU")


def shared_dropout(setting: Setting, found: dict[str, Any]) -> None:
    """At t = r student and target agree, so both passes dropped the same units; with other units they do not."""
    _shared(setting, found, "eager")


def shared_dropout_compiled(setting: Setting, found: dict[str, Any]) -> None:
    """The same where both passes are compiled, each in its own way: one with gradients, one without."""
    if not setting.compiled:
        raise Skipped("compiling was not asked for")
    _shared(setting, found, "compiled")


def _shared(setting: Setting, found: dict[str, Any], kind: str) -> None:
    engine = _dropping(setting, kind)
    with arithmetic(tf32=False):
        found["shared"], found["not shared"] = shared, control = _apart(engine, True), _apart(engine, False)
    if control < 1e-3:
        raise Failed(f"the control sees no dropout at all ({control:.3g})")
    if shared > 1e-3 * control:
        raise Failed(f"the passes are {shared:.3g} apart, with other units {control:.3g}: the masks differ")


def compiled_step(setting: Setting, found: dict[str, Any]) -> None:
    """The gradient of a compiled step is that of the eager one, in float32 and in bfloat16."""
    if not setting.compiled:
        raise Skipped("compiling was not asked for")
    with arithmetic(tf32=False):
        for dtype, most in ((torch.float32, SAME_STEP), (torch.bfloat16, 0.1)):
            name = str(dtype).removeprefix("torch.")
            if dtype is torch.bfloat16 and setting.notes.left < 30:
                found[name] = "no time left"
                break
            gradients = []
            for engine in (_dropping(setting, "compiled"), _dropping(setting, "eager")):
                engine.flat.gradient.zero_()
                terms, _ = engine.terms(_two(), Stage(points=161), dtype)
                terms.loss.mean().backward()  # type: ignore[no-untyped-call, unused-ignore]
                gradients.append(engine.flat.gradient.clone())
            found[f"relative difference, {name}"] = difference = relative(*gradients)
            if not difference < most:
                raise Failed(f"in {name} the compiled gradient is {difference:.3g} from the eager one, {most:g} is allowed")


def rounding(setting: Setting, found: dict[str, Any]) -> None:
    """What bfloat16 and TensorFloat-32 change beside the distance of a pair, for each N of the curriculum.

    Training leaves bfloat16 where it changes the result by a quarter of the median pair distance. What it then turns to must
    itself be under that line, or late stages learn from rounding.
    """
    recipe = _recipe(init="digits")
    engine = _engine(setting, recipe, init=atonce.load("digits"))
    rows, worst = [], 0.0
    for points in (11, 161, 1281) if setting.quick else (11, 21, 41, 81, 161, 321, 641, 1281):
        index, stage = torch.arange(16 if setting.quick else 256), Stage(points=points)
        with arithmetic(tf32=False), _pairs(engine) as pairs, torch.no_grad():
            engine.terms(index, stage, torch.float32)
            engine.terms(index, stage, torch.bfloat16)
        with arithmetic(tf32=True), _pairs(engine) as coarse, torch.no_grad():
            engine.terms(index, stage, torch.float32)
        with _pairs(engine) as found_so, torch.no_grad():  # as training runs it
            engine.terms(index, stage, torch.float32)
        (full, target), (half, _) = pairs
        row: dict[str, Any] = {"N": points, "pair": _median(full, target), "bf16": _median(half, full)}
        row |= {"tf32": _median(coarse[0][0], full), "fp32 as training runs it": _median(found_so[0][0], full)}
        row["bf16 is used"] = row["bf16"] < 0.25 * row["pair"]
        worst = max(worst, row["fp32 as training runs it"] / max(row["pair"], 1e-30))
        rows.append(row)
    found["stages"] = rows
    found["fp32 over the pair, at worst"] = worst
    if not worst < 0.25:
        raise Failed(f"what training calls float32 changes f by {worst:.2g} of a pair's distance (TF32?): a quarter is allowed")


def resume(setting: Setting, found: dict[str, Any]) -> None:
    """A run killed between two checkpoints, carried through the files of a leg and resumed, is the same run."""
    steps, batch = (16, 8) if setting.quick else (40, 64)
    recipe = atonce.recipes.digits(images=steps * batch, batch=batch, s0=10, s1=40, dropout=0.1)
    options: dict[str, Any] = {
        "device": setting.device.type,
        "log_every": batch,
        "evaluate_every": 1 << 40,
        "evaluate_images": 2,
    }
    options |= {"quiet": True, "keep": 2}
    with deterministic():
        whole, again = (atonce.train(recipe, "digits", setting.scratch / name, **options) for name in ("whole", "again"))
        work = setting.scratch / "work"
        with contextlib.suppress(KeyboardInterrupt):
            atonce.train(
                recipe, "digits", work / "run", callback=_killer(7 if setting.quick else 13), checkpoint_seconds=0, **options
            )
        write_json(work / "job.json", {"job": "resume"})
        bring_back(work, setting.scratch / "out", Limits())
        unpack_job(setting.scratch / "out", setting.scratch / "next")
        before = newest_checkpoint(setting.scratch / "next" / "run" / "checkpoints")
        resumed = atonce.train(recipe, "digits", setting.scratch / "next" / "run", **options)
    found["killed at, images"] = before.images_seen if before else None
    found["bytes of state a parameter"] = round(len(read_parts(setting.scratch / "out")) / _count(whole.model), 2)
    found["level"] = unpack(read_parts(setting.scratch / "out"))[2]["level"]
    found["run to run, relative difference"] = noise = _difference(again.model, whole.model)
    found["resumed, relative difference"] = difference = _difference(resumed.model, whole.model)
    found["bit for bit"] = difference == 0
    if before is None or not 0 < before.images_seen < recipe.images:
        raise Failed("the run was not killed in its middle: nothing was tried")
    # Where the libraries of the device do not repeat their sums, no resumed run can; then this much is left to rounding.
    if difference > max(3 * noise, 0.0 if noise == 0 else 1e-5):
        raise Failed(f"resumed, the weights differ by {difference:.3g}; two whole runs differ by {noise:.3g}")
    if noise:
        found["why"] = f"not bit for bit: two whole runs differ by {noise:.3g} too, so sums are not repeated here"


def sampling(setting: Setting, found: dict[str, Any]) -> None:
    """The same seed gives the same samples as on the CPU, to 1e-4 in full float32, at one and two steps."""
    here, there = atonce.load("digits"), atonce.load("digits").to(setting.device)
    for steps in (1, 2):
        ours = here.sample(64, steps, seed=3)
        found[f"{steps} step(s), as found"] = float((there.sample(64, steps, seed=3).cpu() - ours).abs().max())
        with arithmetic(tf32=False):
            full = there.sample(64, steps, seed=3).cpu()
            parts = torch.cat([there.sample(16, steps, seed=3, first=i) for i in range(0, 64, 16)]).cpu()
        found[f"{steps} step(s), full float32"] = difference = float((full - ours).abs().max())
        found[f"{steps} step(s), in batches of 16"] = float((full - parts).abs().max())
        if difference > SAME_SAMPLE:
            raise Failed(f"{steps} step(s): samples differ by {difference:.3g} from the CPU's, {SAME_SAMPLE:g} is allowed")


def marked_tests(setting: Setting, found: dict[str, Any]) -> None:
    """The repository's tests that are marked ``cuda``."""
    if missing := [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]:
        raise Skipped(f"{', '.join(missing)} not installed")
    files = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in f.read_text(encoding="utf-8")]
    files = [file for file in files if "test_gpu" not in file]
    if not files:
        raise Skipped("no test is marked")
    words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    limit = max(10.0, min(setting.notes.left, 240.0))
    try:
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise Skipped(f"not done within {limit:.0f} s") from None
    found["last line"] = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 5:
        raise Skipped("no test was collected")
    if done.returncode:
        raise Failed(f"pytest ended with {done.returncode}: {done.stdout[-1500:]}")


CHECKS: dict[str, Callable[[Setting, dict[str, Any]], None]] = {
    "streams": streams,
    "sampling": sampling,
    "rounding": rounding,
    "resume": resume,
    "shared dropout": shared_dropout,
    "marked tests": marked_tests,
    "shared dropout, compiled": shared_dropout_compiled,
    "compiled step": compiled_step,
}


def _recipe(**changes: Any) -> Recipe:
    return atonce.recipes.ict(images=1 << 20, batch=256, **({"network": "auto"} | changes))


def _engine(setting: Setting, recipe: Recipe, *, init: ConsistencyModel | None = None, compiled: bool = False) -> Engine:
    """An engine on digits, with weights that matter: a fresh network is almost the identity, whatever is dropped in it."""
    data = open_data("digits", split="all")
    resolved = resolve(recipe, data, init)
    said: list[str] = []
    loader = DeviceData(data, seed=0, device=setting.device)
    weights = None if init is None else starting_weights(init, resolved)
    options = Options(device=setting.device.type, compile=compiled)
    engine = Engine(resolved, loader, join_world(setting.device), options, weights, log=said.append)
    if trouble := [text for text in said if "not usable" in text]:
        raise Failed(trouble[0])
    if init is None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            engine.flat.values.add_(torch.randn(engine.flat.values.shape, generator=generator).to(setting.device), alpha=0.03)
    return engine


@contextlib.contextmanager
def _pairs(engine: Engine) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the engine's distance is given: prediction and target of each call."""
    seen: list[tuple[Tensor, Tensor]] = []
    distance = engine.distance

    def spy(prediction: Tensor, target: Tensor) -> Tensor:
        seen.append((prediction.detach(), target.detach()))
        return distance(prediction, target)

    engine.distance = spy
    try:
        yield seen
    finally:
        engine.distance = distance


def _two() -> Tensor:
    """As many images as the engine compiles for at its start: another number would be compiled for again."""
    return torch.arange(2)


def _dropping(setting: Setting, kind: str) -> Engine:
    if kind not in setting.engines:
        setting.engines[kind] = _engine(setting, _recipe(dropout=0.3), compiled=kind == "compiled")
    return setting.engines[kind]


def _apart(engine: Engine, shared: bool) -> float:
    """Median distance of student and target at one noise level and one input, relative to the output."""
    draw, recipe = draw_pairs, engine.recipe
    engine.recipe = dataclasses.replace(recipe, shared_dropout=shared)
    equal = lambda recipe, stage, index: (draw(recipe, stage, index)[0],) * 2
    try:
        with patch.object(terms_module, "draw_pairs", equal), _pairs(engine) as pairs:
            # With gradients, as in training: student and target then run as two different compiled functions.
            engine.terms(_two(), Stage(points=41), torch.float32)
    finally:
        engine.recipe = recipe
    student, target = pairs[0]
    return _median(student, target) / _median(student, torch.zeros_like(student))


def _median(a: Tensor, b: Tensor) -> float:
    """Median over images of ||a - b||."""
    return float(torch.linalg.vector_norm((a - b).flatten(1), dim=1).median())


def _killer(line: int) -> Callable[[dict[str, Any]], None]:
    """A callback that ends the process's work as a kill would, at the given log line."""
    seen: list[int] = []

    def callback(values: dict[str, Any]) -> None:
        seen.append(1)
        if len(seen) == line:
            raise KeyboardInterrupt

    return callback


def _difference(model: ConsistencyModel, other: ConsistencyModel) -> float:
    ours, theirs = (torch.cat([v.flatten().cpu() for v in m.network.state_dict().values()]) for m in (model, other))
    return 0.0 if torch.equal(ours, theirs) else relative(ours, theirs)


def _count(model: ConsistencyModel) -> int:
    return sum(p.numel() for p in model.network.parameters())
