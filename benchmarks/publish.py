"""Put a model into the package's gallery, with its record: ``python benchmarks/publish.py MODEL_FOLDER [MODEL_FOLDER ...]``.

Several model folders of one network are averaged. The gallery's ``digits`` was trained in two runs, an hour and ten minutes on
one core of a CPU beside other work:

    network = UNetConfig(8, 1, channels=32, channel_mult=(1, 2), blocks=1, attention=(4,))
    digits = functools.partial(atonce.recipes.digits, batch=128, network=network)
    one = digits(images=1_600_000, s0=40, s1=640, lr_cooldown=0.5, ema=(0.9995,))
    atonce.train(one, "digits", "runs/gallery-digits", evaluate_every=95_000, evaluate_images=1797)
    two = digits(images=230_400, lr=7e-4, curriculum="fixed", s1=640, lr_cooldown=0.9, ema=(0.998,), huber_c=0.2,
                 init="runs/gallery-digits/best")
    atonce.train(two, "digits", "runs/gallery-digits-tuned", evaluate_every=38_400, evaluate_images=1797)

and is the mean of ``runs/gallery-digits/best``, ``runs/gallery-digits-tuned/best`` and ``runs/gallery-digits-tuned/model``.
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
from atonce.training.recipe import Recipe

DESCRIPTION = (
    "One-step generator of handwritten digits (8x8, grey), trained from data by improved consistency training (iCT) on 1,437 "
    "of scikit-learn's 1,797 digits; the other 360 were never trained on."
)


def main() -> None:
    """Average, judge, describe and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    folders = parser.parse_args().models
    models = [ConsistencyModel.from_pretrained(folder) for folder in folders]
    model = models[-1]
    states = [m.network.state_dict() for m in models]
    model.network.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    recipe = Recipe.from_dict(model.card["recipe"])
    samples = to_uint8(model.sample(COUNT, 1, SAMPLE_SEED))
    verdict = judge_digits(samples)
    print(verdict, *verdict.shortfalls("gallery"), sep="\n")
    data = open_data("digits", split="train")
    model.card.update({"name": "digits", "description": DESCRIPTION, "licence": "apache-2.0"})
    model.card["data licence"] = "scikit-learn's digits: optical recognition of handwritten digits, UCI, CC BY 4.0"
    model.card["images_seen"] = sum({m.card["recipe_digest"]: m.card["recipe"]["images"] for m in models}.values())
    model.card["weights"] = "the mean of " + ", ".join("/".join(folder.parts[-2:]) for folder in folders)
    model.records[:] = [verdict_record(verdict, model, recipe, data)]
    target = gallery_folder() / "digits"
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    pictures = Path(__file__).resolve().parent.parent / "docs" / "pictures"
    real = data.images[:64]
    write_png(pictures / "digits.png", side_by_side([("one network call each", samples[:64]), ("real digits", real)]))


if __name__ == "__main__":
    main()
