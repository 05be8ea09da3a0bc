"""docs/comparison.md and its picture, from the records of the comparison of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import ROOT, Cell, results
from methods import BUDGET, SEEDS, TABLE, cells
from tables import NAMES, bars, cell_text, figure, measured, save, seeds_text

PICTURES = ROOT / "docs" / "pictures"


def write() -> None:
    """Write the page and its picture."""
    lines = [
        "# The methods side by side",
        "",
        "Built by `python benchmarks/methods.py report` from `benchmarks/records/methods/`. One network (`tiny`), one",
        "budget of images for each line, batches of 80; a distilled model has its teacher's budget besides. Fréchet",
        "distances of 5,000 samples in the features of a classifier trained on the same data (not FID; lower is better), and",
        "confidence of that classifier relative to held-out images, both with 95 % intervals: over seeds by Student's t, or",
        "by resampling where there is one seed. Samples a second are those of one CPU thread in batches of 64, while other",
        "work may have run beside; memory is the peak of the training process.",
        "",
        "The last column says in what a line was **not trained with its preset's settings**, which are made for budgets a",
        "thousand times larger; the preset's value stands in brackets.",
    ]
    for data in SEEDS:
        rows = cells(data)
        lines += ["", f"## {NAMES[data]}", "", f"{BUDGET[data]:,} images a line, {seeds_text(TABLE, data, rows)}.", ""]
        lines += [f"![Methods on {NAMES[data]}](pictures/methods-{data}.png)", ""]
        lines += [
            "| method | sampling | calls | Fréchet distance | confidence | samples/s | training memory, MiB | settings |",
            "|---|---|---|---|---|---|---|---|",
        ]
        names, values = [], []
        for cell in rows:
            found = results(TABLE, data, cell.name)
            for sampling in cell.sampling or {}:
                value = measured(TABLE, data, cell, sampling)
                sure, speed = (measured(TABLE, data, cell, sampling, m) for m in ("confidence", "images/s"))
                calls = next((str(r["measured"][sampling]["calls"]) for r in found if sampling in r["measured"]), "")
                memory = max((r["trained"]["peak memory, MiB"] for r in found), default=None)
                mib = f"{memory:.0f}" if memory else "not run"
                rate = f"{speed[0]:.0f}" if speed else "not run"
                row = (cell.what, sampling, calls, cell_text(value), cell_text(sure), rate, mib, settings_text(data, cell))
                lines.append("| " + " | ".join(row) + " |")
                names.append(f"{cell.name}, {sampling}")
                values.append(value)
        made, (axes,) = figure(7.5, 0.32 * len(names) + 0.9)
        bars(axes, names, values, f"{NAMES[data]}: Fréchet distance", values[0][0] if values[0] else None)
        save(made, PICTURES / f"methods-{data}.png")
    (ROOT / "docs" / "comparison.md").write_text("\n".join(lines) + "\n")
    methods = ROOT / "docs" / "methods.md"
    methods.write_text(with_rows(methods.read_text()))


# What is no choice of the method: budget, and what is taken over from data and models.
_LEFT_OUT = ("images", "batch", "seed", "network", "sigma_data", "init", "teacher")


def settings_text(data: str, cell: Cell) -> str:
    """In what a line departs from its preset, as words: of the run that was measured, or of the one that will be."""
    found = results(TABLE, data, cell.name)
    return settings(found[0]["recipe"] if found else cell.recipe(0).as_dict())


def settings(recipe: Mapping[str, Any]) -> str:
    """The fields of a recipe that differ from its preset's: ``name value (the preset's)``."""
    from atonce.training.presets import PRESETS

    usual = PRESETS[recipe["method"]]().as_dict()
    changed = [
        f"{name} {_value(recipe[name])} ({_value(value)})"
        for name, value in usual.items()
        if name not in _LEFT_OUT and name in recipe and _value(recipe[name]) != _value(value)
    ]
    return ", ".join(changed) or "the preset's"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_rows(text: str) -> str:
    """The page of the methods with the measured row of each behind its mark."""
    by_name = {cell.name: cell for cell in cells("digits")}
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith("*Measured*"):
            continue
        out.append(line)
        if line.startswith("<!-- measured "):
            cell = by_name[line.split()[2]]
            values = [f"{name}: {cell_text(measured(TABLE, 'digits', cell, name))}" for name in cell.sampling or {}]
            out.append(f"*Measured* {cell.name}, digits: {'; '.join(values)}. *Settings:* {settings_text('digits', cell)}.")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    write()
