"""Put a model into the package's gallery, with its record.

    python benchmarks/publish.py NAME MODEL_FOLDER [MODEL_FOLDER ...]

Several model folders of one network are averaged. How the gallery's models were trained:

``digits``, in two runs, an hour and ten minutes on one core of a CPU beside other work:

    network = UNetConfig(8, 1, channels=32, channel_mult=(1, 2), blocks=1, attention=(4,))
    digits = functools.partial(atonce.recipes.digits, batch=128, network=network)
    one = digits(images=1_600_000, s0=40, s1=640, lr_cooldown=0.5, ema=(0.9995,))
    atonce.train(one, "digits", "runs/gallery-digits", evaluate_every=95_000, evaluate_images=1797)
    two = digits(images=230_400, lr=7e-4, curriculum="fixed", s1=640, lr_cooldown=0.9, ema=(0.998,), huber_c=0.2,
                 init="runs/gallery-digits/best")
    atonce.train(two, "digits", "runs/gallery-digits-tuned", evaluate_every=38_400, evaluate_images=1797)

and is the mean of ``runs/gallery-digits/best``, ``runs/gallery-digits-tuned/best`` and ``runs/gallery-digits-tuned/model``.

``fashion-mnist``: a class-conditional diffusion model, and its guided distillation; see :mod:`gallery_fashion`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import ROOT, data_named

import atonce
from atonce.core.images import to_uint8
from atonce.core.records import Metric, Record
from atonce.core.streams import permutation
from atonce.data.sources import open_data
from atonce.evaluation.classifier import classifier, classifier_extractor, confidence, label_accuracy
from atonce.evaluation.digits import COUNT, judge_digits
from atonce.exchange.gallery import gallery_folder
from atonce.model import ConsistencyModel
from atonce.reports.demo import SAMPLE_SEED, verdict_record
from atonce.reports.pictures import labelled_rows, side_by_side, write_png
from atonce.training.recipe import Recipe

PICTURES = ROOT / "docs" / "pictures"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the card of a published model says beside its recipe."""

    description: str
    data_licence: str


FACTS = {
    "digits": Facts(
        "One-step generator of handwritten digits (8x8, grey), trained from data by improved consistency training (iCT) on "
        "1,437 of scikit-learn's 1,797 digits; the other 360 were never trained on.",
        "scikit-learn's digits: optical recognition of handwritten digits, UCI, CC BY 4.0",
    ),
    "fashion-mnist": Facts(
        "One-step, class-conditional generator of clothes (28x28, grey): a diffusion model of Fashion-MNIST's 60,000 training "
        "images, distilled with guidance by consistency distillation (CD).",
        "Fashion-MNIST, Zalando Research, MIT",
    ),
}


def main() -> None:
    """Average, judge, describe and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(FACTS))
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--note", default=None, help="a line for the card about where the weights come from")
    given = parser.parse_args()
    models = [ConsistencyModel.from_pretrained(folder) for folder in given.models]
    states = [m.network.state_dict() for m in models]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    model = ConsistencyModel(models[-1].config, card=models[-1].card)  # without the further averages: they are not published
    model.network.load_state_dict(mean)
    facts = FACTS[given.name]
    model.card.update({"name": given.name, "description": facts.description, "licence": "apache-2.0"})
    model.card["data licence"] = facts.data_licence
    model.card["images_seen"] = sum({m.card["recipe_digest"]: m.card["images_seen"] for m in models}.values())
    if len(models) > 1:
        model.card["weights"] = "the mean of " + ", ".join("/".join(folder.parts[-2:]) for folder in given.models)
    if given.note:
        model.card["weights"] = given.note
    model.records[:] = [digits(model) if given.name == "digits" else fashion(model)]
    target = gallery_folder() / given.name
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)


def digits(model: ConsistencyModel) -> Record:
    """Judge and picture of the digits."""
    samples = to_uint8(model.sample(COUNT, 1, SAMPLE_SEED))
    verdict = judge_digits(samples)
    print(verdict, *verdict.shortfalls("gallery"), sep="\n")
    data = open_data("digits", split="train")
    write_png(
        PICTURES / "digits.png", side_by_side([("one network call each", samples[:64]), ("real digits", data.images[:64])])
    )
    return verdict_record(verdict, model, Recipe.from_dict(model.card["recipe"]), data)


def fashion(model: ConsistencyModel) -> Record:
    """Judge and picture of Fashion-MNIST: a row of each class, not chosen."""
    data, held_out = data_named("fashion-28"), data_named("fashion-28", "test")
    judge = classifier(data)
    n, shown, classes = 5_000, 2_000, len(model.labels or [])
    asked = permutation(0, 0, n) % classes  # in no order, since intervals leave out every so-manieth sample
    record = atonce.evaluate(
        model, data, n=n, metrics=("frechet", "precision_recall"), extractor=classifier_extractor(data), labels=asked, seed=0
    )
    samples = to_uint8(model.sample(shown, labels=asked[:shown], seed=0))
    more = {
        "label_accuracy": Metric(label_accuracy(judge, samples, asked[:shown]), higher_is_better=True, unit="share"),
        "confidence": Metric(confidence(judge, samples, held_out.images), higher_is_better=True, unit="ratio"),
    }
    note = (
        f"label_accuracy and confidence are of the first {shown:,} samples; "
        f"the classifier has an accuracy of {judge.accuracy:.3f} on held-out images"
    )
    record = dataclasses.replace(record, metrics={**record.metrics, **more}, notes=(*record.notes, note))
    print({name: (metric.value, metric.interval) for name, metric in record.metrics.items()})
    rows = [(name, samples[asked[:shown] == i][:10]) for i, name in enumerate(model.labels or [])]
    write_png(PICTURES / "fashion-mnist.png", labelled_rows(rows, scale=4))
    return record


if __name__ == "__main__":
    main()
