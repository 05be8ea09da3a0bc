"""The Fréchet distance on EfficientNet-Lite0's features against known damage: CIFAR-10's test images, made worse.

    python benchmarks/effnet.py             the sets that benchmarks/records/effnet.json lacks, 14,000 images in all; writes it
    python benchmarks/effnet.py noise-0.02  only these sets, beside the undamaged ones; prints, writes nothing

The first 2,000 training images are the reference, the first 2,000 test images what is damaged. A distance that people may rank
by must rise with every kind of damage.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.files import write_json
from atonce.core.progress import Progress
from atonce.core.records import commit, versions
from atonce.core.streams import Stream, normal, uniform
from atonce.data.sources import open_data
from atonce.evaluation.cache import reference_moments
from atonce.evaluation.extractors import effnet_lite0
from atonce.evaluation.frechet import BLOCKS, frechet_metric
from atonce.evaluation.gather import gather
from atonce.evaluation.reference import open_reference

RECORD = Path(__file__).resolve().parent / "records" / "effnet.json"
COUNT = 2000
EXPECTED = {"test": 20.0, "noise-0.02": 55.4, "noise-0.05": 127.9, "noise-0.1": 211.7, "blur": 70.4, "uniform": 354.4}
"""What was measured when the weights were first tried, by other code."""


def damaged(name: str, images: Tensor) -> Tensor:
    """A set of images by name.

    Args:
        name: ``test``, ``noise-STD`` (Gaussian, STD of the range 0 to 1), ``blur`` (averages of 2 x 2 pixels, doubled again) or
            ``uniform`` (random pixels).
        images: uint8 [N, C, H, W].

    Returns:
        uint8 [N, C, H, W].
    """
    index, shape = torch.arange(len(images)), tuple(images.shape[1:])
    x = images.to(torch.float32)
    if name == "test":
        return images
    if name.startswith("noise-"):
        x = x + 255 * float(name.removeprefix("noise-")) * normal(0, index, shape, Stream.EVALUATE)
    elif name == "blur":
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    elif name == "uniform":
        count = images[0].numel()
        x = (256 * uniform(0, index, count, Stream.EVALUATE) - 0.5).to(torch.float32).reshape(images.shape)
    else:
        raise ValueError(f"unknown set {name!r}: choose from {', '.join(EXPECTED)}")
    return x.round().clamp(0, 255).to(torch.uint8)


def measure(names: Sequence[str], count: int = COUNT, done: Callable[[str, Any], None] | None = None) -> dict[str, Any]:
    """Distances of sets to the first training images, with their intervals.

    Args:
        names: Sets, as :func:`damaged` knows them.
        count: Images of each.
        done: Told each set and its distance as soon as it is measured.

    Returns:
        For each set the distance, its interval and what was expected.
    """
    extractor = effnet_lite0()
    train, test = (open_data("cifar10", split=split).subset(range(count)) for split in ("train", "test"))
    out: dict[str, Any] = {}
    with Progress("features", (1 + len(names)) * count, "img") as bar:
        reference = reference_moments(open_reference(train), extractor, callback=lambda n, _: bar.update(n, "train"))
        for k, name in enumerate(names, 1):
            told = lambda n, _, k=k, name=name: bar.update(k * count + n, name)
            images = damaged(name, test.images)
            make = lambda first, n, images=images: images[first : first + n]
            blocks = gather(make, count, extractor, batch=64, blocks=BLOCKS, callback=told).blocks
            metric = frechet_metric(blocks, reference)
            out[name] = {"frechet": metric.value, "interval": list(metric.interval or ()), "expected": EXPECTED.get(name)}
            if done is not None:
                done(name, out[name])
    return out


def main() -> None:
    """Measure what is asked for, or what the record lacks; it grows with each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[[], *EXPECTED], help="default: what the record lacks")
    chosen = parser.parse_args().sets
    digest = effnet_lite0().digest
    record = {
        "section": "effnet",
        "what": "FD-EffNet-Lite0 of the first 2,000 CIFAR-10 test images, as they are and damaged, to the first 2,000 of "
        "training",
        "command": "python benchmarks/effnet.py",
        "commit": commit(),
        "extractor": digest,
        "machine": machine(),
        "versions": versions(),
        "measured": {},
    }
    if RECORD.exists() and (before := json.loads(RECORD.read_text()))["extractor"] == digest:
        record["measured"] = before["measured"]

    def keep(name: str, one: Any) -> None:
        print(name, json.dumps(one), flush=True)
        if not chosen:
            record["measured"][name] = one
            record["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_json(RECORD, record)

    measure(chosen or [name for name in EXPECTED if name not in record["measured"]], done=keep)


def machine() -> str:
    """One line about the processor."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import run

    return run.machine()


if __name__ == "__main__":
    main()
