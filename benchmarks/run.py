"""Speed and quality with numbers: ``make bench``, or ``python benchmarks/run.py SECTION ...``.

Each section writes one record to ``benchmarks/records/`` (what was measured, by which command, commit and machine), and
RESULTS.md is built from the records that are there. Times are medians of several runs; comparisons are ratios within one run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from results import write

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"


def median_seconds(work: Callable[[], Any], repeats: int = 7, warmup: int = 2) -> float:
    """Median wall time of ``work`` over ``repeats`` runs after ``warmup`` uncounted ones."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def start_up() -> dict[str, Any]:
    """Seconds to import the package and to print the help, as whole processes beside an empty interpreter."""

    def seconds(*words: str) -> float:
        return median_seconds(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True), 9)

    bare = seconds("-c", "pass")
    modules = subprocess.run(
        [sys.executable, "-c", "import atonce, sys; print('torch' in sys.modules)"], check=True, capture_output=True, text=True
    )
    return {
        "empty interpreter, s": bare,
        "import atonce, s beyond the interpreter": seconds("-c", "import atonce") - bare,
        "atonce --help, s in all": seconds("-m", "atonce", "--help"),
        "torch is loaded by the import": modules.stdout.strip() == "True",
    }


def speed() -> dict[str, Any]:
    """The training step against its matrix work, and sampling against the bare network, on digits' network."""
    import torch

    import atonce
    from atonce.core.distribution import World
    from atonce.data.loader import DeviceData
    from atonce.data.sources import open_data
    from atonce.training.engine import Engine
    from atonce.training.options import Options

    data = open_data("digits")
    recipe = atonce.recipes.digits().resolve(8, 1, 0, data.statistics().std)
    engine = Engine(recipe, DeviceData(data, seed=0), World(), Options())
    x, c = torch.randn(recipe.batch, 1, 8, 8), torch.zeros(recipe.batch)
    x = x.contiguous(memory_format=torch.channels_last)

    def passes() -> None:
        with torch.no_grad():
            engine.network(x, c)
        engine.network(x, c).sum().backward()

    step, floor = median_seconds(engine.step, 15), median_seconds(passes, 15)
    engine.flat.gradient.zero_()
    model = atonce.load("digits")
    n = 64
    z = torch.randn(n, *model.shape)

    def bare() -> None:
        with torch.no_grad():
            model.network(z, torch.zeros(1))

    sample, forward = median_seconds(lambda: model.sample(n), 25), median_seconds(bare, 25)
    return {
        "training, images/s": recipe.batch / step,
        "step over its two passes forward and one backward": step / floor,
        "one-step sampling, images/s": n / sample,
        "sampling over the bare forward pass": sample / forward,
        "network": f"{engine.flat.values.numel():,} parameters",
    }


def _judged(model: Any, seeds: range = range(3)) -> dict[str, Any]:
    from atonce.core.images import to_uint8
    from atonce.evaluation.digits import judge_digits

    verdicts = [judge_digits(to_uint8(model.sample(1797, seed=seed))) for seed in seeds]
    return {
        "R (distance to all digits over that of random halves), per seed": [v.ratio for v in verdicts],
        "confident samples relative to held-out digits, per seed": [v.confidence for v in verdicts],
        "the same by the strict classifier, per seed": [v.strict_confidence for v in verdicts],
        "smallest and largest class share": [
            min(min(v.class_shares) for v in verdicts),
            max(max(v.class_shares) for v in verdicts),
        ],
        "neighbour ratio, per seed": [v.neighbour_ratio for v in verdicts],
    }


def demo() -> dict[str, Any]:
    """What ``atonce demo`` trains, timed and judged with three sampling seeds."""
    import atonce

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = atonce.train(atonce.recipes.digits(), "digits", Path(folder) / "run")
        seconds = time.perf_counter() - start
        if not run.finished:
            raise SystemExit("the demo was interrupted: nothing was recorded")
        recipe = json.loads((run.folder / "recipe.json").read_text())
        return {
            "training, s": seconds,
            "images": recipe["images"],
            "images/s": recipe["images"] / seconds,
            **_judged(run.model),
        }


def gallery() -> dict[str, Any]:
    """The model that comes with the package, judged with three sampling seeds, at one and two steps."""
    import atonce

    model = atonce.load("digits")
    return {"images seen": model.card.get("images_seen"), **_judged(model)}


def fashion() -> dict[str, Any]:
    """Fashion-MNIST by the same command with another --data: a short run that shows the path, not the quality."""
    root = Path(os.environ.get("ATONCE_DATA", ROOT.parent / "shared" / "data")) / "fashion-mnist"
    if not root.is_dir():
        return {"not run": "the Fashion-MNIST files are not there: set ATONCE_DATA"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "train",
            "digits",
            "--data",
            str(root),
            "--out",
            f"{folder}/run",
            "--images",
            "25600",
            "--batch",
            "128",
            "--quiet",
        ]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "atonce", *command], check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        distances = [v for line in lines for k, v in line.items() if k.startswith("frechet")]
        return {
            "seconds": time.perf_counter() - start,
            "images": 3_200,
            "monitored distance at the end": distances[-1],
        }


SECTIONS = {"start-up": start_up, "speed": speed, "gallery": gallery, "demo": demo, "fashion-mnist": fashion}


def machine() -> str:
    """One line about the processor."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    """Run the named sections, or all, and rebuild RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="default: all")
    chosen = parser.parse_args().sections or list(SECTIONS)
    from atonce.core.records import commit, versions

    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        record = {
            "section": name,
            "what": (SECTIONS[name].__doc__ or "").strip(),
            "command": f"python benchmarks/run.py {name}",
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "measured": SECTIONS[name](),
        }
        RECORDS.mkdir(parents=True, exist_ok=True)
        (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps(record["measured"], indent=2), flush=True)
    write()


if __name__ == "__main__":
    main()
