"""Searches for time points against the exhaustive scan: ``python benchmarks/search.py [digits] [fashion-mnist]``.

Two-step sampling of the gallery's models. All searches choose by the same values (the same noise), so that an evaluation of one
is an evaluation of the other. What each found is measured once more with other noise, on which nothing was chosen.
Writes benchmarks/records/search.json; pictures go to the runs. An interrupted run goes on when started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import RECORDS, RUNS
from run import machine

FILE = RECORDS / "search.json"
POINTS = 40  # of the scan, evenly spaced in ln sigma from 0.1 to 20
LOW, HIGH = 0.1, 20.0
BAD = (0.05, 20.0)  # second time points as one might pick them without measuring
SAMPLES = {"digits": 2000, "digits, briefly trained": 2000, "fashion-mnist": 300}
BRIEF = 51_200  # images of the brief training: a model that has not learnt to do everything in its first step
SEED, OTHER_SEED = 0, 1


def scan_grid(points: int = POINTS) -> list[float]:
    """The noise levels of the scan."""
    return [LOW * (HIGH / LOW) ** (i / (points - 1)) for i in range(points)]


def verdict(found: dict[str, Any], scan: dict[str, Any]) -> dict[str, Any]:
    """Whether a search did what is asked of it: inside the interval of the scan's best, at a third of its evaluations."""
    low, high = scan["interval"]
    return {
        "inside the interval of the scan's best": low <= found["value"] <= high,
        "evaluations over those of the scan": found["evaluations"] / scan["evaluations"],
        "met": low <= found["value"] <= high and 3 * found["evaluations"] <= scan["evaluations"],
    }


def summary(result: Any) -> dict[str, Any]:
    """What one search found."""
    found = result.found
    return {
        "sigma": found.sigmas[1],
        "value": found.metric.value,
        "interval": list(found.metric.interval),
        "evaluations": len(result.curve),
    }


def opened(name: str) -> Any:
    """A model of the gallery, or the one that is trained here."""
    import atonce

    if name != "digits, briefly trained":
        return atonce.load(name)
    folder = RUNS / "search-digits"
    return atonce.train(atonce.recipes.digits(images=BRIEF), "digits", folder, evaluate_every=1 << 40).model


def measure(name: str, n: int, points: int = POINTS, ledgers: Path = RUNS) -> tuple[dict[str, Any], Any]:
    """One model: the scan, the searches, the bad defaults.

    Returns:
        JSON values, and the golden search over the fine grid for its picture.
    """
    from cells import data_named

    from atonce.evaluation.search import search_times
    from atonce.model import ConsistencyModel

    model = opened(name)
    data = data_named("fashion-28" if name == "fashion-mnist" else "digits")
    ledgers.mkdir(parents=True, exist_ok=True)

    def search(method: Any, seed: int = SEED, grid: Any = None, start: float | None = None) -> Any:
        chosen = model
        if start is not None:
            config = dataclasses.replace(model.config, time_points={2: (model.sigma_max, start)})
            chosen = ConsistencyModel(config, model.network, card=model.card)
        ledger = ledgers / f"search-{name.replace(', ', '-').replace(' ', '-')}-{n}-{seed}.json"
        say = lambda info: print(f"{name} {method} {info['evaluation']}/{info['expected']}", file=sys.stderr, flush=True)
        return search_times(chosen, data, 2, method=method, grid=grid, n=n, seed=seed, ledger=ledger, callback=say)

    scan = search("scan", grid=scan_grid(points))
    searches = {
        "golden": search("golden", grid=scan_grid(points)),
        "ternary": search("ternary", grid=scan_grid(points)),
        "golden, 100 levels": search("golden"),
        "ternary, Karras grid of 40": search("ternary"),
    }
    best = summary(scan)
    out: dict[str, Any] = {
        "n": n,
        "extractor": dataclasses.asdict(scan.record.extractor),
        "reference": dataclasses.asdict(scan.record.reference),
        "record": scan.record.as_dict(),
        "scan": {**best, "curve": [[point.sigmas[1], point.metric.value, point.metric.interval] for point in scan.curve]},
        "default": {
            "sigma": scan.before.sigmas[1],
            "value": scan.before.metric.value,
            "interval": list(scan.before.metric.interval or ()),
        },
    }
    for key, result in searches.items():
        out[key] = {**summary(result), **verdict(summary(result), best)}
    out["bad defaults"] = []
    for sigma in BAD:
        result = search("golden", grid=scan_grid(points), start=sigma)
        row = {"sigma": sigma, "value": result.before.metric.value, "interval": list(result.before.metric.interval or ())}
        gain = result.gain
        if gain is not None:
            row["gain of golden, with other noise"] = {"value": gain.value, "interval": list(gain.interval or ())}
        out["bad defaults"].append(row)
    # Once more with other noise: on the first values the choice was made, so the lowest of them flatters.
    chosen = {"scan": best["sigma"], "default": out["default"]["sigma"]}
    chosen |= {key: out[key]["sigma"] for key in searches}
    chosen |= {f"bad, {sigma:g}": sigma for sigma in BAD}
    again = search("scan", seed=OTHER_SEED, grid=sorted(set(chosen.values())))
    values = {point.sigmas[1]: point.metric for point in again.curve}
    out["with other noise"] = {key: [values[sigma].value, values[sigma].interval] for key, sigma in chosen.items()}
    return out, searches["golden, 100 levels"]


def main() -> None:
    """Measure the named models and rewrite their part of the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[[], *SAMPLES], help="default: all")
    chosen = parser.parse_args().models or list(SAMPLES)
    from atonce.core.files import write_bytes, write_json
    from atonce.core.records import commit, versions
    from atonce.reports.plots import png
    from atonce.reports.search_plot import search_figure

    for name in chosen:
        measured, golden = measure(name, SAMPLES[name])
        parts = json.loads(FILE.read_text())["measured"] if FILE.exists() else {}
        parts[name] = {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **measured}
        write_bytes(RUNS / f"search-{name.split(', ')[-1].replace(' ', '-')}.png", png(search_figure(golden)))
        write_json(
            FILE,
            {
                "section": "search",
                "what": (__doc__ or "").split("\n", 1)[0],
                "command": "python benchmarks/search.py",
                "commit": commit(),
                "machine": machine(),
                "versions": versions(),
                "grid": f"{POINTS} levels from {LOW:g} to {HIGH:g}, evenly spaced in ln sigma",
                "measured": dict(sorted(parts.items())),
            },
        )
        keys = ("golden", "ternary")
        ratio = math.exp(abs(math.log(measured["golden"]["sigma"] / measured["scan"]["sigma"])))
        print(f"{name}: " + ", ".join(f"{key} met {measured[key]['met']}" for key in keys) + f", sigma off by {ratio:.3g}")


if __name__ == "__main__":
    main()
