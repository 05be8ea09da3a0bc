"""Averages chosen after training: snapshots of a few power-function averages, combined into one of any width (EDM2).

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2 and appendix C.3.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import write_atomic
from atonce.model import ConsistencyModel
from atonce.training.ema import Rate, gamma_of, name_of, parse_rate
from atonce.training.rundir import RunFolder

WARN = 0.1  # residual above which the reconstruction is said to be rough
LIMIT = 0.5  # residual above which it is refused: it would be another average than the one asked for

_NAME = re.compile(r"snapshot-(\d{12,})-(power-[^-]+(?:-\d+)?)\.safetensors")
_KEY = "atonce"  # of our facts in the file's metadata


@dataclass(frozen=True)
class Snapshot:
    """A file that holds a power-function average as it stood at one time.

    Attributes:
        path: The file.
        images_seen: The image clock.
        rate: The average's rate, of kind ``"power"``.
    """

    path: Path
    images_seen: int
    rate: Rate


def snapshot_due(images_seen: int, *, batch: int, total: int, count: int) -> bool:
    """Whether snapshots are to be saved after the step that ends at this clock.

    The steps are spread evenly over the run and the last one is its end. It is a function of the clock alone: a resumed run
    saves at the same steps, and what it saves again is the same file.

    Args:
        images_seen: Images seen including the step's batch, a multiple of the batch.
        batch: Images per step.
        total: The budget in images.
        count: Snapshots in the run; 0: none. A run of fewer steps has one at each.

    Returns:
        Whether one is due.

    Raises:
        InputError: An argument is out of range.
    """
    if batch < 1 or total < batch or count < 0:
        raise InputError(f"batch {batch}, total {total} and count {count}: must be at least 1, at least a batch and at least 0")
    step, steps = images_seen // batch, total // batch
    return 1 <= step <= steps and step * count // steps > (step - 1) * count // steps


def save_snapshot(folder: Path | str, images_seen: int, rate: Rate, state: Mapping[str, Tensor]) -> Path:
    """Write the weights of a power-function average, whole or not at all, with a checksum for each tensor.

    Args:
        folder: Where the snapshots of a run live; made when absent.
        images_seen: The image clock.
        rate: The average's rate, of kind ``"power"``.
        state: Its tensors by name; float32, since a combination of snapshots magnifies their rounding.

    Returns:
        The file, named by clock and rate; one of the same name is replaced.

    Raises:
        InputError: The rate is not a power-function average's, the clock stands at 0 or there is no tensor.
        StorageError: It could not be written.
    """
    if rate.kind != "power":
        raise InputError(f"the average {name_of(rate)} cannot be reconstructed from: only those named power-SIGMA_REL can")
    if images_seen < 1 or not state:
        raise InputError(f"a snapshot at {images_seen} images with {len(state)} tensors: must have at least one of both")
    content = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    facts = {"images_seen": images_seen, "sigma_rel": rate.value, "checksums": {n: _checksum(v) for n, v in content.items()}}

    def write(path: Path) -> None:
        try:
            save_file(content, path, metadata={_KEY: json.dumps(facts)})  # one entry: their order is not fixed
        except SafetensorError as error:  # the library wraps the operating system's error
            raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error

    path = Path(folder) / f"snapshot-{images_seen:012d}-{name_of(rate)}.safetensors"
    write_atomic(path, write)
    return path


def list_snapshots(folder: Path | str) -> list[Snapshot]:
    """The snapshots of a folder.

    Args:
        folder: Where they live; it may be absent.

    Returns:
        By clock, then by sigma_rel. Files with other names are nobody's snapshots.
    """
    folder = Path(folder)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            try:
                found.append(Snapshot(path, int(match[1]), parse_rate(match[2])))
            except InputError:
                continue
    return sorted(found, key=lambda one: (one.images_seen, one.rate.value))


def inner_product(gamma_a: ArrayLike, t_a: ArrayLike, gamma_b: ArrayLike, t_b: ArrayLike) -> NDArray[np.float64]:
    """Inner product of two power-function profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), 0 beyond t.

    With T the later of the two times, G its exponent and m the earlier time:
    integral p_a p_b dtau = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * (m / T)^G / T
    (what Karras et al. 2024, appendix C.3, state as the inner product of two profiles).

    Args:
        gamma_a: Exponents, at least 0; the four arguments are broadcast.
        t_a: Times, above 0.
        gamma_b: Exponents, at least 0.
        t_b: Times, above 0.

    Returns:
        The inner products, in units of 1 / time.
    """
    a, s, b, t = (np.asarray(v, dtype=np.float64) for v in (gamma_a, t_a, gamma_b, t_b))
    later = np.maximum(s, t)
    return (a + 1) * (b + 1) / (a + b + 1) * (np.minimum(s, t) / later) ** np.where(s < t, b, a) / later


def coefficients(
    clocks: Sequence[float], sigma_rels: Sequence[float], sigma_rel: float, at: float
) -> tuple[NDArray[np.float64], float]:
    """The combination of snapshots whose profile is nearest to the one asked for.

    Minimises the integral of (sum_i c_i p_i - q)^2 over time (Karras et al. 2024, section 3.2 and appendix C.3) subject to
    sum_i c_i = 1. The paper leaves the sum free; held, weights that never moved come out unchanged, and few snapshots do not
    scale the network (16 of widths 0.05 and 0.10 would, by 0.9995 for 0.15 and by 0.94 for 0.28).

    An average kept in steps is the profile's exact integral over weights that are constant during each step (:func:`decay_at`),
    so the profiles of continuous time hold without error of discretisation.

    Args:
        clocks: Times t_i of the snapshots, above 0.
        sigma_rels: Their widths.
        sigma_rel: The width asked for.
        at: The time asked for, at most the last of the clocks. Between two clocks the profile ends where none of the snapshots'
            does, so it is matched less well there.

    Returns:
        c_i, 0 for snapshots after the first one at or after ``at`` (their share would be 0 without the constraint), and the
        residual: the norm of the difference of the profiles as a share of the norm of the one asked for.

    Raises:
        InputError: There are no snapshots, or an argument is out of range.
    """
    t = np.asarray(clocks, dtype=np.float64)
    if not t.size or t.shape != (len(sigma_rels),) or not (t > 0).all():
        raise InputError(f"{len(clocks)} clocks and {len(sigma_rels)} sigma_rels: must be as many, one or more, clocks above 0")
    if not 0 < at <= t.max():
        raise InputError(
            f"the average is asked for at {at:,} images, must be above 0 and at most {t.max():,.0f} (the last snapshot)"
        )
    used = t <= t[t >= at].min()
    t, gamma, wanted = t[used] / at, np.array([gamma_of(s) for s in sigma_rels])[used], gamma_of(sigma_rel)  # in units of at
    gram = inner_product(gamma[:, None], t[:, None], gamma, t)
    right = inner_product(gamma, t, wanted, 1.0)
    norm = float(inner_product(wanted, 1.0, wanted, 1.0))
    # Profiles of unit norm; directions that rounding cannot tell apart (twice the same average) are left out.
    scale = 1 / np.sqrt(np.diag(gram))
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    keep = values > 1e-12 * values[-1]
    basis = scale[:, None] * vectors[:, keep] / np.sqrt(values[keep])
    free, ones = basis @ (basis.T @ right), basis @ basis.sum(axis=0)
    solution = free + ones * (1 - free.sum()) / ones.sum()  # the second term is the constraint's Lagrange multiplier
    square = (solution @ gram @ solution - 2 * right @ solution + norm) / norm
    result = np.zeros(len(used))
    result[used] = solution
    return result, float(np.sqrt(max(square, 0.0)))


def reconstruct(folder: Path | str, sigma_rel: float, *, at: int | None = None) -> tuple[dict[str, Tensor], float]:
    """The weights' power-function average of any width at any time up to the last snapshot, after the training.

    The sum is kept in float64 and one tensor of one file is read at a time, so the memory is two float32 models and a tensor.

    Args:
        folder: Where the snapshots of a run live.
        sigma_rel: Width of the average asked for.
        at: Its time in images; default: the last snapshot's.

    Returns:
        The state dict, in the snapshots' types (what is not floating-point comes from the newest one used), and the residual of
        :func:`coefficients`: 0 is exact; above 0.1 a warning is given too.

    Raises:
        InputError: There are no snapshots, the time is out of their range, or the residual is above 0.5.
        ModelFileError: A snapshot is damaged, or they do not belong to one network.
    """
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise InputError(f"{folder} holds no snapshots of power averages: train with some (power-0.05 and power-0.1 are usual)")
    at = snapshots[-1].images_seen if at is None else at
    widths = [one.rate.value for one in snapshots]
    shares, residual = coefficients([one.images_seen for one in snapshots], widths, sigma_rel, at)
    if residual > WARN:
        text = (
            f"sigma_rel {sigma_rel:g} at {at:,} images is matched by the snapshots of widths "
            f"{', '.join(f'{w:g}' for w in sorted(set(widths)))} with a residual of {residual:.2g}"
        )
        if residual > LIMIT:
            raise InputError(
                f"{text}, above the limit of {LIMIT:g}: choose a width nearer to theirs, the time of a snapshot, or save more"
            )
        warnings.warn(f"{text}; below {WARN:g} is good", stacklevel=2)
    used = [(one, share) for one, share in zip(snapshots, shares.tolist(), strict=True) if abs(share) > 1e-12]
    total: dict[str, Tensor] = {}
    kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
    for snapshot, share in used:
        _add(snapshot, share, total, kinds)
    return {name: value.to(kinds[name][0]) for name, value in total.items()}, residual


def average(run: Path | str, sigma_rel: float, *, at: int | None = None) -> tuple[ConsistencyModel, str, float]:
    """The model of a run with one more set of weights: the power-function average of any width, made after the training.

    Args:
        run: The run folder.
        sigma_rel: Width of the average asked for.
        at: Its time in images; default: the last snapshot's.

    Returns:
        The model (nothing is written), the name under which ``sample(ema=...)`` finds the weights (``power-0.07``, with a time
        ``power-0.07-at-64000``), and the residual of :func:`coefficients`.

    Raises:
        InputError: The run kept no snapshots, the width or time is out of their range, or the residual is above 0.5.
        ModelFileError: The run has no model yet, or a snapshot is damaged or of another network.
    """
    folder = RunFolder(run)
    folder.read_recipe()  # it is a run
    name = name_of(Rate("power", sigma_rel)) + ("" if at is None else f"-at-{at}")
    if not list_snapshots(folder.snapshots):
        raise InputError(
            f"{folder.path} has no snapshots of power averages to make {name} from: train with two of them, for example "
            '--set \'ema=["power-0.05", "power-0.1"]\''
        )
    if not folder.model.is_dir():
        raise ModelFileError(f"{folder.path} has no finished model to put {name} beside: let the run come to its end first")
    model = ConsistencyModel.from_pretrained(folder.model)
    if name == model.card.get("ema"):
        raise InputError(f"{name} is what {folder.path} samples by default: nothing is to be made")
    state, residual = reconstruct(folder.snapshots, sigma_rel, at=at)
    shapes = {key: value.shape for key, value in model.network.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != shapes:
        raise ModelFileError(f"the snapshots in {folder.snapshots} are not of the network of {folder.model}")
    weights = {**model._ema, name: state}
    return ConsistencyModel(model.config, model.network, weights, model.card, model.records), name, residual


def _add(snapshot: Snapshot, share: float, total: dict[str, Tensor], kinds: dict[str, tuple[torch.dtype, torch.Size]]) -> None:
    """Add one file's share to the sums, in place; the first file says what tensors there are."""
    path = snapshot.path
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            checksums = facts["checksums"]
            if (facts["images_seen"], facts["sigma_rel"]) != (snapshot.images_seen, snapshot.rate.value):
                raise ModelFileError(f"snapshot {path} was renamed: it holds another clock or width than its name says")
            names = list(file.keys())
            if kinds and set(names) != set(kinds):
                raise ModelFileError(f"snapshot {path} does not hold the same tensors as the others: it is of another network")
            for name in names:
                value = file.get_tensor(name)
                if _checksum(value) != checksums[name]:
                    raise ModelFileError(f"snapshot {path} is damaged: {name} does not match its checksum; remove the file")
                kind = (value.dtype, value.shape)
                if kinds.setdefault(name, kind) != kind:
                    raise ModelFileError(f"snapshot {path} does not fit the others: {name} has another shape or type")
                if not value.is_floating_point():
                    total[name] = value.clone()
                elif name in total:
                    total[name].add_(value.double(), alpha=share)
                else:
                    total[name] = value.double() * share
    except ModelFileError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"snapshot {path} cannot be read: {error}; remove the file") from error


def _checksum(value: Tensor) -> str:
    content = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()[:16]
