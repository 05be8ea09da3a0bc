"""docs/serving-load.md and its picture, from the records of the service under load."""

from __future__ import annotations

import json
from typing import Any

from cells import ROOT
from tables import BLUE, GREY, figure, save

from serving import FOLDER, PROMISE

PAGE = ROOT / "docs" / "serving-load.md"


def record(name: str) -> dict[str, Any] | None:
    """A record, or ``None`` where that part was not run."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def milliseconds(seen: dict[str, Any]) -> str:
    """Median and 99th percentile of the answers."""
    return f"{1e3 * seen['seconds']['p50']:.0f} / {1e3 * seen['seconds']['p99']:.0f} ms"


def row(name: str, seen: dict[str, Any]) -> str:
    """A line of the table."""
    statuses = ", ".join(f"{count} x {status}" for status, count in seen["statuses"].items())
    return f"| {name} | {seen['images/s']:.1f} | {milliseconds(seen)} | {statuses} |"


HEAD = ["| what | images/s | latency, p50 / p99 | answers |", "|---|---|---|---|"]


def load_lines(found: dict[str, Any]) -> list[str]:
    """Throughput against the bare model."""
    ratio, turns = found["ratio"], found["turns"]
    lines = [
        f"{found['clients']} clients in a closed loop, {found['images of a request']} images a request, one step, answers as",
        f"npz, model `{found['model']}`. The bare model makes batched network calls in a loop and does nothing else; in its",
        "turns the same load generator talks at the same rate to something that answers from memory.",
        "",
        *HEAD,
    ]
    lines += [row(f"served, turn {i + 1}", turn["served"]) for i, turn in enumerate(turns)]
    lines += [row("served, one client, n = 1", found["alone, n=1"]), row("served as PNG", found["png"])]
    chosen = found["backend chosen by itself"]
    lines += [row(f"served by the backend it chooses ({chosen['name']})", chosen)]
    forms = {"plain": "`model(x, sigma)`", "service": "the network recorded and channels last, as the service runs it"}
    for form, words in forms.items():
        alike = [[each for each in turn["bare"] if each["form"] == form] for turn in turns]
        best = [max(each, key=lambda one: one["images/s"]) for each in alike]
        rates, sizes = (
            ", ".join(each) for each in zip(*((f"{b['images/s']:.1f}", str(b["batch"])) for b in best), strict=True)
        )
        share = ratio[form]
        lines += [
            "",
            f"Bare, {words}: {rates} images/s (batch {sizes}). The service makes **{100 * share['median']:.0f} %** of that "
            f"(median; {100 * share['least']:.0f} to {100 * share['most']:.0f} %).",
        ]
    waits = [turn["served"]["seconds in the queue, p99"] for turn in turns]
    lines += [
        "",
        f"p99 of the wait in the queue: {', '.join(f'{each:.2f}' for each in waits)} s; the promise is {PROMISE:g} s.",
    ]
    spent = found["png"]["encoding seconds of a request"]
    if spent:
        lines += ["", f"Encoding as PNG takes {1e3 * spent:.1f} ms of a request, beside the network's thread."]
    return lines


def overload_lines(found: dict[str, Any]) -> list[str]:
    """What happens beyond the limit."""
    flood = found["flood"]
    differing = flood["answers that differ from the first to that request"]
    return [
        f"{found['asked, requests/s']:.0f} requests a second, four times what the closed loop got; queue_seconds is",
        f"{PROMISE:g}.",
        "",
        *HEAD,
        row("capacity", found["capacity"]),
        row("at four times as much", flood),
        "",
        f"Refused without Retry-After: {flood['refused without Retry-After']}. Other 5xx: {flood['5xx other than 503']}. "
        f"Failed connections: {sum(flood['connection failures'].values())}. Answers that differ from the first to the same "
        f"request: {differing}. Those that were taken waited for {flood['seconds in the queue, p99']:.2f} s in the queue (p99) "
        f"of {PROMISE:g} promised. Prompt again "
        f"**{found['recovered after, s']:.1f} s** after the flood.",
    ]


def soak_lines(found: dict[str, Any]) -> list[str]:
    """Memory over time."""
    traffic, growth = found["traffic"], found["growth"]
    differing = traffic["answers that differ from the first to that request"]
    error = growth["standard error"]
    return [
        f"{found['minutes']:g} minutes of mixed traffic (generation with one and two steps, inpainting, strokes, denoising;",
        "npz, PNG, WebP) at 60 % of what a closed loop got before it; the tests of the whole library ran beside it.",
        "",
        "![Memory of the process](pictures/serving-soak.png)",
        "",
        *HEAD,
        row("soak", traffic),
        "",
        f"Memory: {growth['first MiB']:.0f} MiB after a third of the time, {growth['last MiB']:.0f} MiB at the end, slope "
        f"{growth['MiB an hour']:+.1f} MiB an hour (standard error {error:.1f}), most {growth['most MiB']:.0f}. Answers that "
        f"differ from the first to the same request: {differing}.",
    ]


def soak_picture(found: dict[str, Any]) -> None:
    """Memory and threads over the minutes."""
    made, (left, right) = figure(9.0, 3.0, 2)
    minutes = [each["seconds"] / 60 for each in found["points"]]
    left.plot(minutes, [each["MiB"] for each in found["points"]], color=BLUE)
    left.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    right.plot(minutes, [each["threads"] for each in found["points"]], color=BLUE, label="threads")
    right.plot(minutes, [each["files"] for each in found["points"]], color=GREY, label="open files")
    right.set(xlabel="minutes", ylim=(0, None))
    right.legend(frameon=False)
    save(made, ROOT / "docs" / "pictures" / "serving-soak.png")


def write() -> None:
    """Write the page and its picture."""
    lines = [
        "# The service under load",
        "",
        "Built by `python benchmarks/serving.py report` from `benchmarks/records/serving/`.",
    ]
    for name, title, text in (
        ("load", "Throughput", load_lines),
        ("overload", "Overload", overload_lines),
        ("soak", "Soak", soak_lines),
    ):
        found = record(name)
        lines += ["", f"## {title}", ""]
        lines += ["Not run."] if found is None else [*text(found), "", f"{found['machine']}; {found['created'][:10]}."]
        if name == "soak" and found is not None:
            soak_picture(found)
    PAGE.write_text("\n".join(lines) + "\n")
