"""What the page of an inspection says of the model itself: facts, provenance and records."""

from __future__ import annotations

import inspect
from typing import Any

from atonce.model import ConsistencyModel
from atonce.reports.inspection import Inspection
from atonce.reports.inspection_paths import sampler_times
from atonce.training import presets

_KINDS = {
    "consistency": "consistency model: one call gives the end of the trajectory, the image",
    "flow_map": "flow map: one call gives any later point of the trajectory",
    "denoiser": "denoiser: one call gives the mean of all images that fit the noisy one",
}
_FORMS = {
    "free": "free: any scale, at two network calls instead of one",
    "fixed": "fixed: scale {} was distilled into the weights",
    "embedded": "embedded: the network is told a scale from {} to {}",
}
_METHODS = ("ict", "ct", "ect", "cd", "progressive", "diffusion")
_ELSEWHERE = ("name", "description", "recipe", "images_seen", "data", "guidance", "method")


def facts(made: Inspection) -> list[tuple[str, str]]:
    """Names and values of the table of facts.

    Args:
        made: The inspection.

    Returns:
        Rows of plain text.
    """
    model = made.model
    c, h, w = model.shape
    end = "the answers are " + ("clean images" if model.sigma_end == 0 else f"at σ = {model.sigma_end:g}, all but clean")
    known = model.config.guidance
    rows = [
        ("kind", _KINDS[model.kind]),
        ("images", f"{c} x {h} x {w} (channels, height, width), {'grey' if c == 1 else 'colour'}"),
        ("parameters", f"{sum(p.numel() for p in model.network.parameters()):,} in {str(model.dtype).removeprefix('torch.')}"),
        ("noise levels", f"trained from σ = {model.sigma_min:g} to {model.sigma_max:g}; {end}"),
        ("sigma_data", f"{model.sigma_data:g}, the standard deviation of the data (pixels from -1 to 1)"),
        ("classes", ", ".join(model.labels) if model.labels else "none: unconditional"),
        ("guidance", _FORMS[known.form].format(*(f"{s:g}" for s in known.scales)) if known is not None else "none"),
        *((f"time points, {n} step{'s' * (n > 1)}", _times(model, n)) for n in (rung.steps for rung in made.ladder)),
        ("method", str(model.card.get("method", "not said by the card"))),
        ("trained on", str(model.card.get("data", "not said by the card"))),
        ("images seen", _budget(model.card)),
    ]
    rows += [(key.replace("_", " "), str(value)) for key, value in model.card.items() if key not in _ELSEWHERE]
    return rows if "licence" in model.card else [*rows, ("licence", "not said by the card")]


def records(model: ConsistencyModel) -> list[tuple[str, ...]]:
    """Rows of the table of measured numbers: metric, value, interval, unit, steps, calls, n, extractor, reference, notes."""
    rows: list[tuple[str, ...]] = []
    for record in model.records:
        seen = record.extractor.seen_in_training
        extractor = record.extractor.name + (" (seen in training: shown, never ranked by)" if seen else "")
        for name, metric in record.metrics.items():
            interval = f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}" if metric.interval else "not computed"
            better = {True: "higher is better", False: "lower is better", None: "neither end is good"}[metric.higher_is_better]
            unit = "; ".join(part for part in (metric.unit, metric.settings, better) if part)
            steps, calls = (str(v) if v is not None else "images given" for v in (record.steps, record.calls))
            rows.append(
                (
                    name,
                    f"{metric.value:.4g}",
                    interval,
                    unit,
                    f"{record.samples:,}",
                    steps,
                    calls,
                    extractor,
                    record.reference.name,
                )
            )
    return rows


def record_notes(model: ConsistencyModel) -> list[str]:
    """What a reader of the records must know beside the numbers."""
    return [note for record in model.records for note in record.notes]


def _times(model: ConsistencyModel, steps: int) -> str:
    times = [f"{t:.4g}" for t in sampler_times(model, steps) if t > 0]
    shown = ", ".join(times if len(times) <= 8 else [*times[:4], "...", *times[-3:]])
    return f"σ = {shown}" + (" (stored with the model)" if steps in model.config.time_points else " (default)")


def _budget(card: dict[str, Any]) -> str:
    seen, method = card.get("images_seen"), card.get("method")
    if not isinstance(seen, int):
        return "not said by the card"
    if method not in _METHODS:
        return f"{seen:,}"
    published = inspect.signature(getattr(presets, str(method))).parameters["images"].default
    share = seen / published
    part = f"{100 * share:.2g} %" if share < 1 else f"{share:.2g} times"
    return f"{seen:,}: {part} of the {published / 1e6:,.4g} million of the published recipe ({method} on CIFAR-10)"
