"""What an inspection of a model holds: everything its page shows, as plain tensors and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atonce.model import ConsistencyModel
from atonce.reports.inspection_material import Material
from atonce.reports.inspection_measures import Curves, Neighbours, Sensitivity
from atonce.reports.inspection_paths import Path, TeacherPath


@dataclass(frozen=True)
class Rung:
    """The same noises taken to images in some number of steps.

    Attributes:
        steps: Intervals.
        calls: Network calls for each image.
        sigmas: Starting levels of the intervals.
        images: float [n, C, H, W].
        change: Root mean square change per pixel from the row before; ``None`` for the first.
    """

    steps: int
    calls: int
    sigmas: tuple[float, ...]
    images: Tensor
    change: float | None


@dataclass(frozen=True)
class Interpolation:
    """Images between two noises, on the arc of the sphere.

    Attributes:
        images: float [rows, k, C, H, W], the ends included.
        labels: Class of each row, or ``None``.
        jumps: Root mean square change per pixel between neighbours, float [rows, k - 1].
    """

    images: Tensor
    labels: tuple[int, ...] | None
    jumps: Tensor


@dataclass(frozen=True)
class ByClass:
    """Samples of each class.

    Attributes:
        classes: Class numbers of the rows.
        images: float [classes, k, C, H, W]; a column shares its noise.
        scales: Guidance scales of ``guided``; empty where none can be chosen.
        guided: One sample of each class at each scale, float [scales, classes, C, H, W]; ``None`` without scales.
    """

    classes: tuple[int, ...]
    images: Tensor
    scales: tuple[float, ...]
    guided: Tensor | None


@dataclass(frozen=True)
class Inspection:
    """What the page shows; a part that could not be made is ``None``.

    Attributes:
        model: The model (for the facts of its card).
        seed: Of all noise.
        steps: Intervals of the sampler where nothing else is said.
        samples: One grid of samples, float [n, C, H, W].
        ladder: The same noises at several numbers of steps.
        noised: Real images under noise; empty without data.
        ways: Ways of the model's own sampler from noise to image.
        teacher: Its trajectories.
        curves: Consistency gap and error over sigma.
        neighbours: Nearest training images.
        by_class: Samples of each class.
        interpolation: Images between noises.
        sensitivity: Which part of the noise decides what.
        material: The real images that were used.
        missing: Why there are none.
        full_covariance: Whether the Gaussian that was fitted has a whole covariance.
    """

    model: ConsistencyModel
    seed: int
    steps: int
    samples: Tensor
    ladder: tuple[Rung, ...]
    noised: tuple[Path, ...]
    ways: tuple[Path, ...]
    teacher: TeacherPath | None
    curves: Curves | None
    neighbours: Neighbours | None
    by_class: ByClass | None
    interpolation: Interpolation
    sensitivity: Sensitivity
    material: Material | None
    missing: str
    full_covariance: bool | None

    def numbers(self) -> dict[str, Any]:
        """The measured numbers as JSON values."""
        out: dict[str, Any] = {
            "kind": self.model.kind,
            "seed": self.seed,
            "samples": len(self.samples),
            "data": None if self.material is None else self.material.training.name,
            "without_data": self.missing or None,
            "change_by_steps": {str(rung.steps): rung.change for rung in self.ladder[1:]},
            "noise_inside_share": self.sensitivity.inside,
            "largest_interpolation_jump": float(self.interpolation.jumps.max()),
        }
        if self.curves is not None:
            made = self.curves
            out["consistency_gap"] = {"sigma": made.gap.sigmas, "rms": made.gap.values, "error": made.gap.errors}
            out["consistency_gap_gaussian"] = made.gap_exact.values
            out["error"] = {"sigma": made.error.sigmas, "rms": made.error.values, "error": made.error.errors}
            out["error_linear"] = made.error_linear.values
        if self.neighbours is not None:
            out["neighbour_ratio"] = self.neighbours.ratio
        if self.teacher is not None:
            out["teacher_distance"] = {"sigma": self.teacher.sigmas, "rms": self.teacher.distances}
        return out
