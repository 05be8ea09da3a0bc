"""The metrics by name, and what each draws on: the samples, their features and classes, the reference, the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from atonce.core.progress import Progress
from atonce.core.records import Metric, Source
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData
from atonce.evaluation import digits
from atonce.evaluation.cache import reference_features, reference_moments
from atonce.evaluation.classes import chance_variation, class_accuracy, class_balance, frechet_per_class
from atonce.evaluation.classifier import Classifier
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import Moments, frechet_metric
from atonce.evaluation.gain import step_gain
from atonce.evaluation.gather import Gathered
from atonce.evaluation.kernel import kernel_metric
from atonce.evaluation.manifold import density_coverage, precision_recall
from atonce.evaluation.neighbours import memorisation_metric
from atonce.evaluation.probes import Probes
from atonce.evaluation.reference import Reference, data_source
from atonce.evaluation.samples import Samples, class_names
from atonce.evaluation.score import score_metric


@dataclasses.dataclass
class Work:
    """Everything that the metrics of one evaluation draw on.

    Attributes:
        source: The samples.
        real: The data they are to be like.
        against: What distances compare with.
        extractor: Turns images into features.
        judge: The classifier of the data, or None.
        halves: Training and held-out images, for ``neighbours``.
        probes: The metrics that look at the model itself.
        batch: Images in one go.
        seed: Of the resampling.
        sharded: Whether the processes of the group share the work.
        quiet: Whether progress is not shown.
        device: Where extractors work.
        notes: What a reader of the record must know.
        gathered: What was kept of the samples, once they were made.
        probabilities: Class probabilities of the samples [n, K] by the extractor (``is``) and by the judge (``judge``).
    """

    source: Samples
    real: ImageData
    against: Reference
    extractor: Extractor
    judge: Classifier | None
    halves: tuple[ImageData, ImageData] | None
    probes: Probes | None
    batch: int
    seed: int
    sharded: bool
    quiet: bool
    device: torch.device
    notes: list[str] = dataclasses.field(default_factory=list)
    gathered: Gathered = Gathered((), None, None)
    probabilities: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    _features: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    _moments: Moments | None = None

    @property
    def ours(self) -> Tensor:
        """Features of the samples [n, D]."""
        assert self.gathered.features is not None  # kept where a metric needs them
        return self.gathered.features

    @property
    def predicted(self) -> Tensor:
        """Class of each sample by the judge, int64 [n]."""
        return self.probabilities["judge"].argmax(1)

    @property
    def settings(self) -> str:
        """What found the classes."""
        return "" if self.judge is None else f"classifier {self.judge.digest[:12]}"

    def features(self, source: Source, images: Tensor) -> Tensor:
        """Features of real images [m, D], computed once for each source."""
        if source.digest not in self._features:
            with shown(f"features of {source.name}", self.quiet) as step:
                self._features[source.digest] = reference_features(
                    Reference(source, images),
                    self.extractor,
                    batch=self.batch,
                    sharded=self.sharded,
                    device=self.device,
                    callback=step,
                )
        return self._features[source.digest]

    def theirs(self) -> Tensor:
        """Features of the reference [m, D]."""
        assert self.against.images is not None  # checked where a metric needs them
        return self.features(self.against.source, self.against.images)

    def even(self) -> Tensor:
        """The same, as many as there are samples: manifolds are compared at equal counts, since they depend on them."""
        theirs, n = self.theirs(), len(self.ours)
        return theirs if len(theirs) <= n else theirs[permutation(0, 0, len(theirs))[:n]]

    def moments(self) -> Moments:
        """Mean and covariance of the reference's features."""
        if self._moments is None:
            with shown(f"statistics of {self.against.source.name}", self.quiet) as step:
                self._moments = reference_moments(
                    self.against,
                    self.extractor,
                    batch=self.batch,
                    sharded=self.sharded,
                    device=self.device,
                    callback=step,
                    features=self._features.get(self.against.source.digest),
                )
        return self._moments


Found = dict[str, Metric]


@contextlib.contextmanager
def shown(title: str, quiet: bool, at_once: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Progress of a part of the work, on stderr.

    Args:
        title: What is done.
        quiet: Show nothing.
        at_once: Show it from the beginning; otherwise from the first thing done, since what was kept from before takes no time.

    Yields:
        To be called with (done, total).
    """
    bar = Progress(title, None, "img", quiet=quiet)
    with contextlib.ExitStack() as stack:
        entered = bool(at_once and stack.enter_context(bar))

        def step(done: int, total: int) -> None:
            nonlocal entered
            bar.total = total
            entered = entered or bool(stack.enter_context(bar))
            bar.update(done)

        yield step


def _frechet(work: Work) -> Found:
    n, d = work.source.count, work.extractor.dimension
    if n < d + 1:
        work.notes.append(f"the covariance of {n} samples in {d} dimensions is singular: take more than {d}")
    return {"frechet": frechet_metric(work.gathered.blocks, work.moments())}


def _neighbours(work: Work) -> Found:
    assert work.halves is not None
    training, held_out = (work.features(data_source(half), half.images) for half in work.halves)
    return {"neighbour_ratio": memorisation_metric(work.ours, training, held_out, seed=work.seed)}


def _class_balance(work: Work) -> Found:
    labels, names = work.real.labels, class_names(work.real)
    assert labels is not None
    shares = labels.bincount(minlength=len(names)).to(torch.float64) / len(labels)
    chance = chance_variation(shares, work.source.count)
    work.notes.append(f"{work.source.count} perfect samples would show a class_total_variation of about {chance:.2g} by chance")
    return class_balance(work.predicted, shares, names, work.settings)


def _class_accuracy(work: Work) -> Found:
    assert work.source.labels is not None
    assert work.judge is not None
    work.notes.append(f"the classifier finds the class of {work.judge.accuracy:.1%} of real images it has not seen")
    found = class_accuracy(work.predicted, work.source.labels, seed=work.seed, settings=work.settings)
    return {"class_accuracy": found}


def _frechet_per_class(work: Work) -> Found:
    asked = work.source.labels
    classes = work.predicted if asked is None else asked
    assert work.real.labels is not None
    theirs = work.features(data_source(work.real), work.real.images)
    words = f"classes by {work.settings}" if asked is None else "classes asked for"
    found, notes = frechet_per_class(work.ours, classes, theirs, work.real.labels, class_names(work.real), words)
    work.notes += notes
    return found


def _step_gain(work: Work) -> Found:
    assert work.source.floats is not None
    assert work.probes is not None
    with shown("samples at each number of steps", work.quiet) as step:
        return step_gain(
            work.source.floats,
            work.probes.most_steps(),
            work.source.count,
            work.extractor,
            work.moments(),
            probes=work.probes.count,
            batch=work.batch,
            seed=work.seed,
            sharded=work.sharded,
            device=work.device,
            callback=step,
        )


def _of_probes(name: str) -> Callable[[Work], Found]:
    def measure(work: Work) -> Found:
        assert work.probes is not None
        with shown(name.replace("_", " "), work.quiet) as step:
            found, notes = getattr(work.probes, name)(work.seed, work.sharded, step)
        work.notes += notes
        return dict(found)

    return measure


def _digits(work: Work) -> Found:
    assert work.gathered.images is not None
    return digits_metrics(digits.judge_digits(work.gathered.images))


def digits_metrics(verdict: digits.DigitsVerdict) -> Found:
    """The judge's findings as metrics; the shares are given by their smallest and largest."""
    return {
        "digits_ratio": Metric(verdict.ratio, None, higher_is_better=False, unit="ratio"),
        "digits_confidence": Metric(verdict.confidence, None, higher_is_better=True, unit="ratio", settings="one against rest"),
        "digits_confidence_strict": Metric(
            verdict.strict_confidence, None, higher_is_better=True, unit="ratio", settings="pairs, coupled"
        ),
        "digits_smallest_class": Metric(min(verdict.class_shares), None, higher_is_better=None, unit="share"),
        "digits_largest_class": Metric(max(verdict.class_shares), None, higher_is_better=None, unit="share"),
        "digits_neighbour_ratio": Metric(verdict.neighbour_ratio, None, higher_is_better=True, unit="ratio"),
    }


MEASURES: dict[str, Callable[[Work], Found]] = {
    "frechet": _frechet,
    "fid": lambda work: {"fid": _frechet(work)["frechet"]},
    "kid": lambda work: {"kid": kernel_metric(work.ours, work.theirs(), seed=work.seed)},
    "is": lambda work: {"is": score_metric(work.probabilities["is"], seed=work.seed)},
    "precision_recall": lambda work: precision_recall(work.ours, work.even(), seed=work.seed),
    "density_coverage": lambda work: density_coverage(work.ours, work.even(), seed=work.seed),
    "neighbours": _neighbours,
    "classifier_score": lambda work: {
        "classifier_score": score_metric(work.probabilities["judge"], seed=work.seed, settings=work.settings)
    },
    "class_balance": _class_balance,
    "class_accuracy": _class_accuracy,
    "frechet_per_class": _frechet_per_class,
    "consistency_gap": _of_probes("consistency_gap"),
    "teacher_distance": _of_probes("teacher_distance"),
    "step_gain": _step_gain,
    "digits": _digits,
}
"""The metrics by the names that people ask for; each gives one or more values."""
