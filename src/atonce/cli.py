"""The command line: parse, call, print. Each verb is one function; its arguments are the function's, read by tyro."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

import atonce
from atonce.core.commands import one_line, one_line_warnings, parse
from atonce.core.errors import AtonceError, InputError, ModelFileError

Preset = Literal["ict", "ct", "ect", "cd", "progressive", "diffusion", "digits"]
Fields = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]  # --set a=1 b=2 --set c=3


def demo(
    out: Path = Path("runs/demo"), images: int | None = None, seed: int = 0, resume: bool = True, quiet: bool = False
) -> int:
    """Train a one-step generator of handwritten digits on this machine, in three to four minutes, and explain what was seen.

    Example: atonce demo

    Args:
        out: Run folder: model, pictures, plots and report.html.
        images: Budget in images seen; default: that of the recipe.
        seed: Seed of the run.
        resume: Continue an interrupted demo.
        quiet: Show no progress.

    Returns:
        The exit status.
    """
    from atonce.reports.demo import run_demo

    made = run_demo(out, images=images, seed=seed, resume=resume, quiet=quiet)
    print(made.text)
    return 0 if made.verdict is not None else 130


def train(
    preset: Positional[Preset],
    data: str = "digits",
    out: Path = Path("runs/run"),
    images: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    network: str | None = None,
    init: str | None = None,
    teacher: str | None = None,
    set: Fields = (),
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    skip_bad: bool = False,
    resume: bool = True,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    microbatch: int | None = None,
    checkpoint_seconds: float = 120.0,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Train a model, or continue an interrupted run: the same command again resumes it.

    Example: atonce train digits --images 100000 --batch 128 --out runs/digits

    Args:
        preset: Recipe to start from.
        data: Name (digits, fashion-mnist, cifar10, ...), or a folder, zip or file of images.
        out: Run folder.
        images: Budget in images seen; default 2,000,000 (digits: 320,000; the iCT paper on CIFAR-10: 409,600,000).
        batch: Images per optimiser step; default 256 (digits: 128).
        seed: Seed of weights, order and noise.
        network: auto, tiny, small, ddpmpp, ncsnpp, ncsnpp-deep, adm or adm-deep; default auto (digits: tiny), which
            takes over the network of a model that the run starts from.
        init: Model whose weights start the run; cd and progressive start from the teacher where it is not given.
        teacher: Diffusion model to distil, for cd and progressive: gallery name, run folder, model folder or hub id.
        set: Further recipe fields as name=value, for example --set lr=3e-4 dropout=0.2 conditional=true.
        size: Crop and resize images to this height and width.
        channels: 1 for grey, 3 for RGB.
        skip_bad: Skip unreadable images instead of stopping.
        resume: Continue a run that is in the folder.
        device: auto, cpu, cuda or cuda:N.
        precision: auto uses bf16 where the machine has it and its rounding is small enough.
        compile: Use torch.compile.
        microbatch: Images per pass; more are accumulated.
        checkpoint_seconds: Time between two checkpoints.
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status: 130 where the run was stopped before its end.
    """
    from atonce.core.distribution import is_main
    from atonce.data.sources import open_data
    from atonce.training.words import recipe_from_words

    given = {"images": images, "batch": batch, "seed": seed, "network": network, "init": init, "teacher": teacher}
    recipe = recipe_from_words(
        preset, {k: v for k, v in given.items() if v is not None}, [pair for part in set for pair in part]
    )
    source = open_data(data, size=size, channels=channels, skip_bad=skip_bad)
    run = atonce.train(
        recipe,
        source,
        out,
        resume,
        device=device,
        precision=precision,
        compile=compile,
        microbatch=microbatch,
        checkpoint_seconds=checkpoint_seconds,
        quiet=quiet,
    )
    if is_main():
        facts = {"folder": str(run.folder), "images_seen": run.images_seen, "finished": run.finished}
        state = "finished" if run.finished else "stopped; the same command continues it"
        _print(facts, f"{run.folder}: {run.images_seen:,} images seen, {state}", json)
    return 0 if run.finished else 130


def sample(
    model: Positional[str],
    n: int = 64,
    steps: int = 1,
    seed: int = 0,
    first: int = 0,
    labels: tuple[int, ...] = (),
    sigmas: tuple[float, ...] = (),
    sampler: Literal["auto", "restart", "heun", "euler"] = "auto",
    guidance: float | None = None,
    ema: str | None = None,
    batch: int | None = None,
    device: str = "auto",
    out: Path = Path("samples.png"),
    json: bool = False,
) -> int:
    """Generate images: a grid (.png), one file each (a folder), or arrays (.npz).

    Example: atonce sample digits --n 64 --out samples.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        n: Number of images.
        steps: Intervals; a consistency model makes one network call for each.
        seed: Seed of the noise.
        first: Index of the first image.
        labels: Class of the images: one for all, or one for each.
        sigmas: Starting noise levels, instead of the default ones.
        sampler: restart for consistency models, heun or euler for denoisers.
        guidance: Scale of classifier-free guidance, for class-conditional models that know it; 1 is none.
        ema: Name of another set of weights in the model.
        batch: Images computed at once.
        device: auto, cpu, cuda or cuda:N.
        out: A .png grid, an .npz file (arr_0: N H W C), or a folder.
        json: Print the result as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range.
    """
    from atonce.core.progress import Progress
    from atonce.reports.pictures import save_samples
    from atonce.training.options import pick_device

    if n < 1:
        raise InputError(f"n is {n}, must be at least 1")
    opened = atonce.load(model).to(pick_device(device))
    calls = 0
    with contextlib.ExitStack() as shown:
        bar: Progress | None = None  # made when something happens, so that a refusal is one line

        def step(info: dict[str, Any]) -> None:
            nonlocal calls, bar
            calls = info["calls"]
            bar = bar or shown.enter_context(Progress("sampling", n, "img"))
            bar.update(info["done"])

        images = opened.sample(
            n,
            steps,
            seed,
            first=first,
            labels=list(labels) or None,
            sigmas=list(sigmas) or None,
            sampler=sampler,
            guidance=guidance,
            ema=ema,
            batch=batch,
            callback=step,
        )
    files = save_samples(images, out, first)
    facts = {"out": str(out), "n": n, "steps": steps, "calls": calls, "files": files}
    _print(facts, f"{n} images, {calls} network calls each: {out}", json)
    return 0


def data_inspect(
    data: Positional[str],
    split: str = "train",
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    skip_bad: bool = False,
    json: bool = False,
) -> int:
    """Say what is in a data set: counts, shape, classes, mean, sigma_data, duplicates, and the sigma_max it suggests.

    Example: atonce data inspect digits

    Args:
        data: Name, or a folder, zip or file of images.
        split: train, test or all, where the data have splits.
        size: Crop and resize images to this height and width.
        channels: 1 for grey, 3 for RGB.
        skip_bad: Skip unreadable images instead of stopping.
        json: Print the result as JSON.

    Returns:
        The exit status.
    """
    from atonce.data.inspect import inspect_data
    from atonce.data.sources import open_data

    report = inspect_data(open_data(data, split=split, size=size, channels=channels, skip_bad=skip_bad))
    text = report.describe()
    _print(report.as_dict(), text if isinstance(text, str) else "\n".join(text), json)
    return 0


def evaluate(
    model: Positional[str],
    data: str = "digits",
    steps: int = 1,
    n: int = 2000,
    metrics: tuple[str, ...] = ("frechet", "kid", "precision_recall"),
    extractor: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Measure a model, or a folder of images, against data.

    Example: atonce eval digits --data digits --n 1000

    Args:
        model: Gallery name, run folder, model folder, hub id, or a folder of images.
        data: Name, or a folder, zip or file of images.
        steps: Intervals of the sampler.
        n: Number of samples.
        metrics: Names of metrics.
        extractor: What turns images into features.
        seed: Seed of the samples.
        out: File for the record (JSON).
        json: Print the record as JSON.

    Returns:
        The exit status.

    Raises:
        ModelFileError: There is no such model.
    """
    subject: Any = model
    try:
        subject = atonce.load(model)
    except ModelFileError:
        if not Path(model).is_dir() or (Path(model) / "config.json").exists():
            raise
    record = atonce.evaluate(subject, data, steps=steps, n=n, metrics=metrics, extractor=extractor, seed=seed)
    if out is not None:
        record.save(out)
    lines = []
    for name, metric in record.metrics.items():
        interval = f"  ({metric.interval[0]:.5g} to {metric.interval[1]:.5g})" if metric.interval else ""
        lines.append(f"{name}: {metric.value:.5g}{interval}")
    _print(record.as_dict(), "\n".join([*lines, *record.notes]), json)
    return 0


def gallery(json: bool = False) -> int:
    """List the models that come with the package.

    Example: atonce gallery

    Args:
        json: Print the list as JSON.

    Returns:
        The exit status.
    """
    from atonce.exchange.gallery import gallery_names

    models = {name: atonce.load(name) for name in gallery_names()}
    facts = {n: {"shape": list(m.shape), "kind": m.kind, "labels": m.labels, "card": m.card} for n, m in models.items()}
    rows = [f"{n:16} {m.kind}, {'x'.join(map(str, m.shape))}  {m.card.get('description', '')}" for n, m in models.items()]
    _print(facts, "\n".join(rows) or "the gallery is empty", json)
    return 0


def doctor(json: bool = False) -> int:
    """Check this machine: versions, device, speed of arithmetic, extras, data and disk.

    Example: atonce doctor

    Args:
        json: Print the findings as JSON.

    Returns:
        The exit status.
    """
    from atonce.reports.doctor import examine

    findings = examine()
    _print({f.name: f.value for f in findings}, "\n".join(f"{f.mark} {f.name:18} {f.value}" for f in findings), json)
    return 0


VERBS: dict[str, tuple[Callable[..., int], str]] = {
    "demo": (demo, "train a digit generator here in three to four minutes and explain what was seen"),
    "train": (train, "train a model on your images, or continue a run"),
    "sample": (sample, "generate images"),
    "eval": (evaluate, "measure a model against data"),
    "data inspect": (data_inspect, "say what is in a data set and what it means for training"),
    "gallery": (gallery, "list the models that come with the package"),
    "doctor": (doctor, "check this machine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; default: those of the process.

    Returns:
        The exit status: 0, 2 for bad input, 130 for an interruption.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"atonce {atonce.__version__}")
        return 0
    verb = next((v for k in (2, 1) if (v := " ".join(words[:k])) in VERBS), None)
    if verb is None:
        return _no_verb(words)
    with one_line_warnings():
        try:
            return parse(f"atonce {verb}", VERBS[verb][0], words[verb.count(" ") + 1 :])()
        except AtonceError as error:
            print(f"atonce: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("atonce: interrupted", file=sys.stderr)
            return 130
        finally:
            if "torch.distributed" in sys.modules:
                from atonce.core.distribution import leave_world

                leave_world()


def _no_verb(words: list[str]) -> int:
    """Help or complaint for words that name no verb; a first word of several verbs, like ``data``, has help of its own."""
    below = [v for v in VERBS if v.startswith(words[0] + " ")]
    if below and words[1:2] in (["-h"], ["--help"]):
        print(_usage(below))
        return 0
    listed = ", ".join(below or VERBS)
    hint = f"'{words[0]}' needs one of: {listed}" if below else f"there is no verb {words[0]!r}; verbs: {listed}"
    print(f"atonce: {hint}", file=sys.stderr)
    return 2


def _usage(verbs: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, verbs))
    lines = ["usage: atonce VERB ...", "", "One-step generative models: train, sample, measure.", ""]
    lines += [f"  {verb:{width}}  {VERBS[verb][1]}" for verb in verbs]
    return "\n".join([*lines, "", "atonce VERB --help says more, with an example that runs. First: atonce demo"])


def _print(facts: Any, text: str, as_json: bool) -> None:
    print(json.dumps(facts, indent=2) if as_json else text)
