"""docs/ablation.md and its pictures, from the records of the ablation."""

from __future__ import annotations

from ablation import BUDGET, GRIDS, SEEDS, TABLE, cells
from cells import ROOT, Cell, results
from tables import BLUE, GREY, NAMES, bars, cell_text, figure, measured, plain_log, power_law, save, seeds_text

PICTURES = ROOT / "docs" / "pictures"
FIXED = "curriculum-fixed"  # the line with N = 641 throughout


def write() -> None:
    """Write the page and its pictures."""
    lines = [
        "# What each ingredient of iCT is worth",
        "",
        "Built by `python benchmarks/ablation.py report` from `benchmarks/records/ablation/`; the paragraphs under *What was",
        "seen* are in `benchmarks/ablation_seen.md`. One ingredient is switched at a time, all else stays: network `tiny`,",
        "RAdam with a rate of 2e-3 that cools down, batches of 80. The budgets are minutes of one CPU core, thousandths of the",
        "paper's, so this says what an ingredient is worth **early on and on small images**, not at the end of a paper's run.",
        "",
        "Numbers are Fréchet distances of 5,000 samples in the features of a classifier trained on the same data (not FID;",
        "lower is better), with 95 % intervals: over seeds by Student's t, or by resampling where there is one seed.",
    ]
    for data in SEEDS:
        lines += table(data)
        picture(data)
    lines += ["", "## Quality against N", "", "N grid points throughout instead of a curriculum, at the same budget.", ""]
    lines += grid_lines()
    seen = ROOT / "benchmarks" / "ablation_seen.md"
    if seen.exists():
        lines += ["", "## What was seen", "", seen.read_text().strip()]
    (ROOT / "docs" / "ablation.md").write_text("\n".join(lines) + "\n")


def ingredients(data: str) -> list[Cell]:
    """The lines of the table, without the sweep over N."""
    return [cell for cell in cells(data) if cell.group != "N"]


def table(data: str) -> list[str]:
    """The table of one data set."""
    rows = ingredients(data)
    head = f"{BUDGET[data]:,} images a line, {seeds_text(TABLE, data, rows)}"
    out = ["", f"## {NAMES[data]}", "", f"{head}.", "", f"![Ingredients on {NAMES[data]}](pictures/ablation-{data}.png)", ""]
    out += ["| ingredient | switched to | 1 step | 2 steps | confidence, 1 step |", "|---|---|---|---|---|"]
    for cell in rows:
        one, two = (measured(TABLE, data, cell, steps) for steps in ("1 step", "2 steps"))
        sure = measured(TABLE, data, cell, "1 step", "confidence")
        out.append(f"| {cell.group} | {cell.what} | {cell_text(one)} | {cell_text(two)} | {cell_text(sure)} |")
    return out


def picture(data: str) -> None:
    """Dots with intervals for one and two steps."""
    rows = ingredients(data)
    made, axes = figure(9.0, 4.2, 2)
    for each, steps in zip(axes, ("1 step", "2 steps"), strict=True):
        values = [measured(TABLE, data, cell, steps) for cell in rows]
        bars(each, [cell.name for cell in rows], values, f"{steps}: Fréchet distance", values[0][0] if values[0] else None)
    save(made, PICTURES / f"ablation-{data}.png")


def grid_lines() -> list[str]:
    """The sweep over N: a table, the fitted power law, and the picture."""
    out = ["| data | " + " | ".join(f"N = {n + 1}" for n in (*GRIDS, 640)) + " | power law |", "|---" * (len(GRIDS) + 3) + "|"]
    made, axes = figure(9.0, 3.4, len(SEEDS))
    for each, data in zip(axes, SEEDS, strict=True):
        by_name = {cell.name: cell for cell in cells(data)}
        points = [(n, measured(TABLE, data, by_name[f"n-{n}" if n in GRIDS else FIXED], "1 step")) for n in (*GRIDS, 640)]
        known = [(n, value) for n, value in points if value is not None]
        law = "not run"
        for n, (mean, interval) in known:
            each.plot([n], [mean], "o", color=BLUE, markersize=5)
            if interval is not None:
                each.plot([n, n], [max(interval[0], mean / 20), interval[1]], color=BLUE, linewidth=1.4)
        falling = known[: 1 + min(range(len(known)), key=lambda i: known[i][1][0])] if known else []
        if len(falling) >= 3:
            a, b, rest = power_law([n for n, _ in falling], [value[0] for _, value in falling])
            law = f"{a:.3g} (N-1)^-{b:.2f} up to N = {falling[-1][0] + 1}, rms of ln {rest:.2f}"
            ends = (falling[0][0], falling[-1][0])
            each.plot(ends, [a * n**-b for n in ends], color=GREY, linewidth=1.0, linestyle="--")
        if known:
            plain_log(each.xaxis, each.set_xscale)
            plain_log(each.yaxis, each.set_yscale)
        each.set_title(NAMES[data], fontsize=9)
        each.set_xlabel("intervals N - 1", fontsize=8)
        each.set_ylabel("Fréchet distance, 1 step", fontsize=8)
        out.append(f"| {NAMES[data]} | " + " | ".join(cell_text(value) for _, value in points) + f" | {law} |")
    save(made, PICTURES / "ablation-n.png")
    return [
        *out,
        "",
        "The law is fitted to the points up to the best N, where more points still help.",
        "",
        "![Quality against N](pictures/ablation-n.png)",
    ]


def finished(data: str) -> int:
    """Cells of a data set that are measured for every seed."""
    return sum(len(results(TABLE, data, cell.name)) >= len(SEEDS[data]) for cell in cells(data))


if __name__ == "__main__":
    write()
