"""Promotion by record: whether the records of two models show that the one is not worse than the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from atonce.core.records import Record, conditions, measured_differently, metric_differs
from atonce.evaluation.compare import Difference, compare

TOLERANCE = 0.1
"""The share of the present value by which a candidate may be worse, at the unlucky end of the difference's interval."""
DECIDING = ("fid", "frechet", "kid")
"""Metrics that may decide, the first that both records have."""
MEASURE = "atonce eval MODEL --append-to-model"
"""How a record comes into a model's folder, also into that of a version that is in a registry already."""
_SAME = ("samples", "seed", "steps", "sigmas", "sampler", "ema")
"""Conditions that must agree beside those of :func:`~atonce.core.records.comparable`."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a candidate may be promoted, and why.

    Attributes:
        good: It may.
        reason: One sentence with the numbers.
        metric: The metric that decided; None where nothing could be compared.
        candidate: Its value and interval of the candidate.
        present: Its value and interval of the version in use.
        worse_by: How much worse the candidate is (below 0: better), and the half width of that difference's interval.
        record: The candidate's record that this rests on.
    """

    good: bool
    reason: str
    metric: str | None = None
    candidate: tuple[float, tuple[float, float] | None] | None = None
    present: tuple[float, tuple[float, float] | None] | None = None
    worse_by: tuple[float, float] | None = None
    record: Record | None = None

    def numbers(self) -> dict[str, Any]:
        """What the history keeps of it, as JSON values."""
        if self.record is None:
            return {}
        about = {"data": self.record.data.name, "extractor": self.record.extractor.name, **conditions(self.record)}
        facts = {"made": self.record.created, **{k: v for k, v in about.items() if v != "-"}}
        out: dict[str, Any] = {"record": facts}
        if self.metric is not None:
            out |= {"metric": self.metric, "candidate": self.candidate, "present": self.present, "worse_by": self.worse_by}
        return out


def first_version(records: Sequence[Record], identity: str) -> Verdict:
    """Whether a model may become the first version: it must have been measured at all.

    Args:
        records: The model's records.
        identity: Name and digest of its weights (``atonce.model_files.model_identity``).

    Returns:
        The verdict.
    """
    usable = [record for record in records if _is_of(record, identity, unnamed=True)]
    if not usable:
        return Verdict(False, f"{identity} has no record of its own: measure it ({MEASURE})")
    best = next((record for record in reversed(usable) if any(name in record.metrics for name in DECIDING)), usable[-1])
    told = ", ".join(f"{name} {metric.value:.4g}" for name, metric in list(best.metrics.items())[:3])
    return Verdict(True, f"the first version, measured: {told}", record=best)


def judge(
    candidate: Sequence[Record],
    present: Sequence[Record],
    identity: str,
    present_identity: str,
    *,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Whether the candidate is shown to be not worse than the version in use.

    A record of each side is needed that may be compared (:func:`~atonce.core.records.comparable`: the same reference,
    extractor, number of samples, rounding and classes, an extractor that training has not seen) and was made alike: the same
    seed, steps, noise levels, sampler and weights. One metric decides (:data:`DECIDING`): the upper end of the 95 % interval of
    the worsening must lie within ``tolerance`` of the present value. So a record of too few samples, whose interval leaves much
    open, shows nothing. Every other metric with a better end must not be surely worse by more than the same tolerance.
    Where several pairs of records fit, each must agree.

    Args:
        candidate: Records of the candidate.
        present: Records of the version in use.
        identity: Name and digest of the candidate's weights.
        present_identity: Of those in use.
        tolerance: Share of the present value.

    Returns:
        The verdict.
    """
    ours = [record for record in candidate if _is_of(record, identity)]
    theirs = [record for record in present if _is_of(record, present_identity)]
    for whose, found, name in (("the candidate", ours, identity), ("the version in use", theirs, present_identity)):
        if not found:
            reason = f"{whose}, {name}, has no record that names its weights: measure it ({MEASURE})"
            return Verdict(False, reason)
    verdicts: list[Verdict] = []
    refused: list[str] = []
    for record in reversed(ours):
        for other in reversed(theirs):
            if (unlike := _not_alike(record, other)) is not None:
                refused.append(unlike)
            else:
                verdicts.append(_compared(record, other, tolerance))
    if not verdicts:
        return Verdict(False, f"no record of the candidate may be compared with one of the version in use: {refused[0]}")
    return next((verdict for verdict in verdicts if not verdict.good), verdicts[0])


def _is_of(record: Record, identity: str, *, unnamed: bool = False) -> bool:
    if record.model is None:
        return unnamed
    return record.model.rpartition(" ")[2] == identity.rpartition(" ")[2]


def _not_alike(a: Record, b: Record) -> str | None:
    if reason := measured_differently(a, b):
        return reason
    if a.data.digest != b.data.digest:
        return f"the data differ: {a.data.name} and {b.data.name}"
    one, other = conditions(a), conditions(b)
    different = next((name for name in _SAME if one[name] != other[name]), None)
    if different is not None:
        return f"{different} differ: {one[different]} and {other[different]}"
    if _decider(a, b) is None:
        return f"they share none of {', '.join(DECIDING)}"
    return None


def _decider(a: Record, b: Record) -> str | None:
    both = (name for name in DECIDING if name in a.metrics and name in b.metrics)
    return next((name for name in both if not metric_differs(name, a, b)), None)


def _compared(record: Record, other: Record, tolerance: float) -> Verdict:
    decider = _decider(record, other)
    assert decider is not None
    found = compare([other, record], ["in use", "candidate"])
    differences = {each.metric: each for each in found.differences}
    ours, theirs, difference = record.metrics[decider], other.metrics[decider], differences[decider]
    half = difference.half
    if half is None:
        reason = f"{decider} has no interval: measure with more samples (n of at least 50)"
        return Verdict(False, reason, record=record)
    worse = _worsening(difference, ours.higher_is_better)
    # A kernel distance may be about 0 or below: what its own interval leaves open is the least that can be asked.
    allowed = tolerance * max(abs(theirs.value), _half(theirs.interval))
    said = (
        f"{decider} {theirs.value:.4g} to {ours.value:.4g}, worse by {worse:+.3g} ± {half:.2g} "
        f"(95 %, at most {allowed:.3g} is allowed), {record.samples:,} samples, {record.steps} steps, {record.extractor.name}"
    )
    sides = (ours.value, ours.interval), (theirs.value, theirs.interval)
    good = worse + half <= allowed
    if not good:
        why = "is surely worse" if worse - half > 0 else "is not shown to be as good: measure both with more samples"
        said = f"the candidate {why}: {said}"
    for name, each in differences.items():
        if not good or name == decider or each.half is None or record.metrics[name].higher_is_better is None:
            continue
        a, b = record.metrics[name], other.metrics[name]
        if _worsening(each, a.higher_is_better) - each.half > tolerance * abs(b.value):
            good = False
            said = f"the candidate's {name} is surely worse: {b.value:.4g} to {a.value:.4g}; {said}"
    return Verdict(good, said, decider, *sides, (worse, half), record)


def _worsening(difference: Difference, higher_is_better: bool | None) -> float:
    return -difference.value if higher_is_better else difference.value


def _half(interval: tuple[float, float] | None) -> float:
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2
