"""What plans rest on, and whether they come true.

python benchmarks/plan.py table       src/atonce/planning/methods.json from the records of the table of methods
python benchmarks/plan.py check       predict five presets, train them, compare: benchmarks/records/plan.json
python benchmarks/plan.py check --tiny --out /tmp/plan.json     the same in seconds, to see that it works
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import RECORDS, ROOT, summary

TABLE = ROOT / "src" / "atonce" / "planning" / "methods.json"
OUT = RECORDS / "plan.json"
LIMIT = 0.25  # largest share by which a prediction may be wrong
_NOT_SETTINGS = {"method", "images", "batch", "seed", "network", "sigma_data", "init", "teacher"}


# ---- the table


def table() -> dict[str, Any]:
    """What the package knows of the methods, from the records that are committed."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted((RECORDS / "methods").glob("*/*.json")):
        cells.setdefault((file.parent.name, file.name.split(".")[0]), []).append(json.loads(file.read_text("utf-8")))
    lines = [_line(cell, rows) for (_, cell), rows in cells.items()]
    return {"made by": "python benchmarks/plan.py table", "lines": lines, "gallery": _gallery()}


def _line(cell: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    recipe = rows[0]["recipe"]
    found = {}
    for name, step in (("one", "1 step"), ("two", "2 steps")):
        value = summary(rows, step, "frechet")
        found[name] = (
            None if value is None else [round(value[0], 3), round((value[1][1] - value[1][0]) / 2, 3) if value[1] else 0.0]
        )
    return {
        "data": rows[0]["data"]["name"],
        "size": recipe["network"]["size"],
        "cell": cell,
        "method": recipe["method"],
        "images": recipe["images"],
        "teacher": recipe["teacher"] is not None,
        "seconds": round(statistics.median(row["trained"]["seconds"] for row in rows)),
        "seeds": len(rows),
        **found,
        "settings": _settings(recipe),
    }


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields in which a recipe is not its preset."""
    from atonce.training.presets import PRESETS

    extra = {"teacher": "teacher"} if recipe["teacher"] else {}
    preset = PRESETS[recipe["method"]](recipe["images"], recipe["batch"], **extra).as_dict()
    same = json.loads(json.dumps(preset))
    return {name: v for name, v in recipe.items() if name in same and name not in _NOT_SETTINGS and same[name] != v}


def _gallery() -> list[dict[str, Any]]:
    """The models of the package, and their teachers where the card says what these had seen."""
    found = []
    for file in sorted((ROOT / "src" / "atonce" / "gallery").glob("*/config.json")):
        config = json.loads(file.read_text("utf-8"))
        card, size = config["card"], config["network"]["size"]
        found.append(
            {
                "method": card["method"],
                "start": "teacher" if card["recipe"].get("teacher") else "data",
                "data": f"{file.parent.name} ({size}x{size})",
                "size": size,
                "images": card["images_seen"],
                "result": "the model that comes with the package",
                "compute": "",
                "source": "measured",
                "reference": "its model card",
            }
        )
        if seen := re.search(r"teacher had seen ([\d,]+)", str(card.get("weights"))):
            images = int(seen[1].replace(",", ""))
            found.append(found[-1] | {"method": "diffusion", "start": "data", "images": images, "result": "its teacher"})
    return found


# ---- the check


@dataclasses.dataclass(frozen=True)
class Case:
    """A training that is predicted and done.

    Attributes:
        preset: Its recipe.
        data: ``digits``, or ``fashion-28``.
        network: The network.
        batch: Images a step.
        images: Budget.
        seconds: Of the probe.
    """

    preset: str
    data: str
    network: str
    batch: int
    images: int
    seconds: float = 20.0


CASES = (
    Case("ict", "digits", "tiny", 128, 25_600),
    Case("ct", "digits", "tiny", 128, 25_600),
    Case("ect", "digits", "tiny", 128, 25_600),
    Case("diffusion", "digits", "tiny", 128, 25_600),
    Case("cd", "digits", "tiny", 128, 19_200),
    Case("ict", "fashion-28", "small", 64, 1_280),
)
TINY = (Case("ict", "digits", "tiny", 16, 320, 1.0), Case("cd", "digits", "tiny", 16, 320, 1.0))


def inside(what: str, *values: Any) -> dict[str, Any]:
    """Do a part of a case in a process of its own, as a command would be, and read the JSON of its last line."""
    with tempfile.TemporaryDirectory(prefix="atonce-check-") as folder:
        file = Path(folder) / "case.json"
        file.write_text(json.dumps([*values, str(Path(folder) / "run")]))
        start = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, what, str(file)], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{what} {values}: {done.stderr[-2000:]}")
    return {"wall": seconds, **json.loads(done.stdout.splitlines()[-1])}


def predict(file: str) -> None:
    """Print what the plan says of a case: seconds and bytes."""
    from cells import data_named

    from atonce.planning.plan import plan
    from atonce.planning.wish import Wish

    case = Case(**json.loads(Path(file).read_text())[0])
    start = time.perf_counter()
    data = data_named(case.data, "train")
    opening = time.perf_counter() - start
    wish = Wish(images=case.images, batch=case.batch, network=case.network, seconds=case.seconds)
    made = plan(wish, data, methods=(case.preset,), opening=opening)
    found = next(each for each in made.predictions if each.method == case.preset)
    facts = {"seconds": found.time.value, "memory": found.memory.value, "settings": found.settings, "parts": found.parts}
    print(json.dumps({**facts, "probe": found.measurement.to_json()}))


def one(file: str) -> None:
    """Train one case in this process and print its peak of memory, and the time of what does not belong to the run."""
    from cells import data_named

    import atonce
    from atonce.planning.machine import peak_memory
    from atonce.planning.material import stand_in

    values, settings, out = json.loads(Path(file).read_text())
    case = Case(**values)
    data = data_named(case.data, "train")
    start = time.perf_counter()
    extra: dict[str, Any] = {}
    if case.preset == "cd":
        extra["teacher"] = stand_in(atonce.recipes.diffusion(network=case.network), data)
    apart = time.perf_counter() - start
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    recipe = getattr(atonce.recipes, case.preset)(case.images, case.batch, **{"network": case.network, **extra, **settings})
    atonce.train(recipe, data, out, quiet=True)
    print(json.dumps({"memory": peak_memory(), "apart": apart}))


def check(cases: tuple[Case, ...], out: Path) -> bool:
    """Predict and do each case; write the record after each."""
    import torch

    from atonce.core.files import write_json
    from atonce.core.records import commit, versions
    from atonce.planning.machine import machine

    rows: list[dict[str, Any]] = []
    for case in cases:
        before = inside("predict", dataclasses.asdict(case))
        after = inside("one", dataclasses.asdict(case), before["settings"])
        after["seconds"] = after["wall"] - after["apart"]
        row: dict[str, Any] = {**dataclasses.asdict(case), **{name: before[name] for name in ("settings", "parts", "probe")}}
        for name in ("seconds", "memory"):
            row[name if name == "memory" else "time"] = {
                "predicted": before[name],
                "measured": after[name],
                "wrong by": before[name] / after[name] - 1,
            }
        row["within limit"] = all(abs(row[name]["wrong by"]) <= LIMIT for name in ("time", "memory"))
        rows.append(row)
        print(
            f"{case.preset:10} {case.data:10} {case.network:6} time {before['seconds']:.3g} s, was {after['seconds']:.3g} s "
            f"({row['time']['wrong by']:+.0%}); memory {before['memory'] / 2**20:.0f} MiB, was "
            f"{after['memory'] / 2**20:.0f} MiB ({row['memory']['wrong by']:+.0%})",
            flush=True,
        )
        facts = {
            "section": "plan",
            "what": "What plans predicted, and what the trainings took: wall time and peak memory of a process.",
            "command": "python benchmarks/plan.py check",
            "commit": commit(),
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
            "limit": LIMIT,
            "cases": rows,
            "within limit": all(r["within limit"] for r in rows),
        }
        write_json(out, facts)
    return all(row["within limit"] for row in rows)


def main() -> None:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "check", "predict", "one"))
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="cases of seconds")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.what == "table":
        from atonce.core.files import write_text

        write_text(TABLE, json.dumps(table(), indent=1, ensure_ascii=False) + "\n")
        print(TABLE)
    elif arguments.what in ("predict", "one"):
        (predict if arguments.what == "predict" else one)(arguments.file)
    elif arguments.tiny and arguments.out == OUT:
        raise SystemExit("--tiny is to see that it works: give it another --out than the record")
    else:
        sys.exit(0 if check(TINY if arguments.tiny else CASES, arguments.out) else 1)


if __name__ == "__main__":
    main()
