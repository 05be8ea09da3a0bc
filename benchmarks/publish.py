"""Put the model of a run into the package's gallery, with its record: ``python benchmarks/publish.py RUN [--model best]``.

The gallery's ``digits`` was trained by

    python -c "import atonce; atonce.train(atonce.recipes.digits(images=1_600_000, batch=128, s0=40, s1=640, lr_cooldown=0.5,
                                           ema=(0.9995,)), 'digits', 'runs/gallery-digits')"

in about an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from atonce.core.images import to_uint8
from atonce.data.sources import open_data
from atonce.evaluation.digits import COUNT, judge_digits
from atonce.exchange.gallery import gallery_folder
from atonce.model import ConsistencyModel
from atonce.reports.demo import SAMPLE_SEED, verdict_record
from atonce.reports.pictures import side_by_side, write_png
from atonce.training.rundir import RunFolder

DESCRIPTION = (
    "One-step generator of handwritten digits (8x8, grey), trained from data by improved consistency training (iCT) on 1,437 "
    "of scikit-learn's 1,797 digits; the other 360 were never trained on."
)


def main() -> None:
    """Judge, describe and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", choices=["model", "best"], default="model")
    options = parser.parse_args()
    folder = RunFolder(options.run)
    recipe = folder.read_recipe()
    model = ConsistencyModel.from_pretrained(getattr(folder, options.model))
    samples = to_uint8(model.sample(COUNT, 1, SAMPLE_SEED))
    verdict = judge_digits(samples)
    print(verdict, *verdict.shortfalls("gallery"), sep="\n")
    data = open_data("digits", split="train")
    model.card.update({"name": "digits", "description": DESCRIPTION, "licence": "apache-2.0"})
    model.card["data licence"] = "scikit-learn's digits: optical recognition of handwritten digits, UCI, CC BY 4.0"
    model.card["selection"] = "the last weights" if options.model == "model" else "the weights of the lowest monitored distance"
    model.records[:] = [verdict_record(verdict, model, recipe, data)]
    target = gallery_folder() / "digits"
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    pictures = Path(__file__).resolve().parent.parent / "docs" / "pictures"
    real = data.images[:64]
    write_png(pictures / "digits.png", side_by_side([("one network call each", samples[:64]), ("real digits", real)]))


if __name__ == "__main__":
    main()
