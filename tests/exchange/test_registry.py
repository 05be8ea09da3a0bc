"""The registry: promotion by record, an atomic pointer, checked digests, roll-back, and readers that never see a half."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import atonce
from atonce.core.errors import InputError, ModelFileError
from atonce.core.records import Metric, Record, Source, make_record
from atonce.exchange.promotion import first_version, judge
from atonce.exchange.registry import (
    current,
    folder_of,
    history,
    is_registry_entry,
    mark,
    marks,
    promote,
    roll_back,
    versions,
)
from atonce.model import ConsistencyModel
from atonce.model_config import ModelConfig
from atonce.model_files import model_identity
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(8, 1, channels=8, channel_mult=(1,), blocks=1, attention=())
PIXELS, DIGITS = Source("pixels", "aa"), Source("digits", "bb", 1797)


def measured(value: float, half: float = 0.05, **changes: object) -> Record:
    metrics = {"frechet": Metric(value, (value - half, value + half), unit="squared distance")}
    metrics["recall"] = Metric(0.6, (0.58, 0.62), higher_is_better=True, unit="share")
    record = make_record(
        metrics, device="cpu", extractor=PIXELS, reference=DIGITS, data=DIGITS, samples=1000, seed=0, steps=1, calls=1
    )
    return dataclasses.replace(record, **changes)


def model(scale: float, *records: Record) -> ConsistencyModel:
    """A model whose weights are a function of ``scale``, and records of it."""
    config = ModelConfig(NETWORK, Preconditioning("boundary", 0.5, 0.002), "consistency", 0.002, 80.0)
    made = ConsistencyModel(config)
    generator = torch.Generator().manual_seed(7)
    made.network.load_state_dict(
        {name: scale * torch.randn(value.shape, generator=generator) for name, value in made.network.state_dict().items()}
    )
    made.records[:] = [dataclasses.replace(record, model=record.model or model_identity(made)) for record in records]
    return made


def folder(path: Path, scale: float, *records: Record) -> Path:
    model(scale, *records).save_pretrained(path)
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    promote(folder(tmp_path / "one", 0.1, measured(1.0)), tmp_path / "models", "digits")
    return tmp_path / "models"


def test_the_first_version_needs_a_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no record of its own: measure it"):
        promote(folder(tmp_path / "one", 0.1), tmp_path / "models", "digits")
    assert not is_registry_entry(tmp_path / "models" / "digits")
    # A record of other weights is none of its own.
    with pytest.raises(InputError, match="no record of its own"):
        promote(folder(tmp_path / "two", 0.1, measured(1.0, model="model, sha256 0123")), tmp_path / "models", "digits")


def test_a_promoted_model_is_opened_and_measured_by_the_name_of_its_entry(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    assert is_registry_entry(entry)
    assert not is_registry_entry(registry)
    assert not is_registry_entry(tmp_path / "one")
    version, place = current(entry)
    assert (version, place) == ("0001", entry / "versions" / "0001")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atonce.load(entry)(x, 3.0), atonce.load(tmp_path / "one")(x, 3.0))


def test_a_better_one_is_promoted_with_its_numbers_and_rolled_back(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    done = promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits")
    assert (done.version, done.before) == ("0002", "0001")
    assert "frechet 1 to 0.8, worse by -0.2 ± 0.071" in done.reason
    last = history(entry)[-1]
    assert last["action"] == "promote"
    assert last["metric"] == "frechet"
    assert last["candidate"] == [0.8, [0.75, 0.8500000000000001]]
    assert last["worse_by"] == pytest.approx([-0.2, 0.05 * 2**0.5])
    assert last["record"]["samples"] == "1000"
    third = promote(folder(tmp_path / "three", 0.3, measured(0.7)), registry, "digits")
    assert third.version == "0003"
    assert roll_back(entry, "blurred").version == "0002"
    assert roll_back(entry).version == "0001"  # what was in use before the second, not the third again
    with pytest.raises(InputError, match="0001 is the first version"):
        roll_back(entry)
    assert current(entry)[0] == "0001"
    assert [(each["action"], each["version"], each["before"]) for each in history(entry)] == [
        ("promote", "0001", None),
        ("promote", "0002", "0001"),
        ("promote", "0003", "0002"),
        ("roll-back", "0002", "0003"),
        ("roll-back", "0001", "0002"),
    ]
    assert history(entry)[3]["reason"] == "blurred"
    assert [(each["version"], each["state"], each["in_use"]) for each in versions(entry)] == [
        ("0001", "whole", True),
        ("0002", "whole", False),
        ("0003", "whole", False),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (measured(1.5), r"the candidate is surely worse: frechet 1 to 1.5, worse by \+0.5 ± 0.071"),
        (measured(1.0, 0.3), "is not shown to be as good: measure both with more samples"),
        (measured(0.5, extractor=Source("classifier", "cc")), "the extractors differ"),
        (measured(0.5, extractor=Source("pixels", "aa", seen_in_training=True)), "seen in training"),
        (measured(0.5, samples=900), "the sample counts differ: 900 and 1000"),
        (measured(0.5, seed=1), "seed differ: 1 and 0"),
        (measured(0.5, steps=2), "steps differ: 2 and 1"),
        (measured(0.5, data=Source("other", "dd")), "the data differ"),
        (measured(0.5, ema="0.9"), "ema differ"),
        (measured(0.5, model="model, sha256 0123456789abcdef"), "no record that names its weights"),
        (measured(0.5, metrics={"frechet": Metric(0.5)}), "frechet has no interval"),
        (
            measured(0.9, metrics={"frechet": Metric(0.9, (0.88, 0.92)), "recall": Metric(0.2, (0.18, 0.22), True)}),
            "the candidate's recall is surely worse: 0.6 to 0.2",
        ),
    ],
)
def test_what_the_records_do_not_show_is_refused(registry: Path, tmp_path: Path, record: Record, said: str) -> None:
    candidate = folder(tmp_path / "two", 0.2, record)
    with pytest.raises(InputError, match=said):
        promote(candidate, registry, "digits")
    assert current(registry / "digits")[0] == "0001"
    assert [path.name for path in (registry / "digits" / "versions").iterdir()] == ["0001"]
    forced = promote(candidate, registry, "digits", force="a trial in the small region")
    assert forced.version == "0002"
    assert history(registry / "digits")[-1]["action"] == "force"
    assert history(registry / "digits")[-1]["reason"].startswith("a trial in the small region (the records said: ")


def test_every_pair_of_records_that_fits_must_agree() -> None:
    one, two = measured(1.0, model="a 1"), measured(1.0, model="a 1", steps=2)
    fine, bad = measured(0.9, model="b 2"), measured(2.0, model="b 2", steps=2)
    assert judge([fine], [one, two], "b 2", "a 1").good
    assert not judge([fine, bad], [one, two], "b 2", "a 1").good
    assert judge([measured(1.0, model="b 2")], [one], "b 2", "a 1").good  # equal, and measured well enough to say so
    assert not judge([measured(1.0, model="b 2")], [one], "b 2", "a 1", tolerance=0.01).good
    assert first_version([dataclasses.replace(one, model=None)], "b 2").good


def test_nothing_is_promoted_twice_and_names_are_checked(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this very model already"):
        promote(tmp_path / "one", registry, "digits", force="again")
    for name in ("", "../up", ".hidden", "a/b", "x" * 65, "a b"):
        with pytest.raises(InputError, match="cannot be used"):
            promote(tmp_path / "one", registry, name)
    with pytest.raises(InputError, match="needs a reason"):
        promote(tmp_path / "one", registry, "digits", force=" ")
    with pytest.raises(InputError, match="tolerance is 2"):
        promote(tmp_path / "one", registry, "digits", tolerance=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("hello")
    with pytest.raises(InputError, match="is no registry entry"):
        promote(tmp_path / "one", tmp_path, "notes")
    with pytest.raises(InputError, match="is at version 0001, not 0007"):
        roll_back(registry / "digits", only_from="0007")


def test_a_version_that_was_changed_is_not_used(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits")
    config = entry / "versions" / "0002" / "config.json"
    config.write_text(config.read_text().replace('"sigma_max": 80.0', '"sigma_max": 70.0'))
    with pytest.raises(ModelFileError, match="was changed after its promotion"):
        current(entry)
    with pytest.raises(ModelFileError, match="or promote with --force"):
        promote(folder(tmp_path / "three", 0.3, measured(0.7)), registry, "digits")
    assert roll_back(entry, "damaged").version == "0001"
    weights = entry / "versions" / "0001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert [each["state"] for each in versions(entry)] == ["changed", "changed"]
    with pytest.raises(ModelFileError, match="checksum"):
        atonce.load(entry)
    # With both damaged only a new model helps, and it takes the next number.
    assert promote(tmp_path / "three", registry, "digits", force="both were damaged").version == "0003"


def test_records_and_the_card_of_a_version_may_grow(registry: Path) -> None:
    from atonce.evaluation.keep import keep_record

    _, place = current(registry / "digits")
    found = atonce.load(place)
    assert keep_record(dataclasses.replace(measured(1.0, steps=2), model=model_identity(found)), place) == 2
    assert current(registry / "digits")[0] == "0001"
    assert versions(registry / "digits")[0]["state"] == "whole"


def test_what_a_killed_promotion_leaves_is_harmless(registry: Path, tmp_path: Path) -> None:
    left = registry / "digits" / "versions"
    (left / ".new-half").mkdir()
    (left / ".new-half" / "model.safetensors").write_bytes(b"half")
    (left / "0002").mkdir()  # killed between the files and the pointer
    assert current(registry / "digits")[0] == "0001"
    assert promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits").version == "0003"
    assert not (left / ".new-half").exists()
    (tmp_path / "models" / "fresh" / "versions" / "0001").mkdir(parents=True)
    assert promote(tmp_path / "two", registry, "fresh").version == "0002"


@pytest.mark.parametrize("damage", ["{", "[]", '{"library_name": "x"}', '{"library_name": "atonce-registry", "format": 9}'])
def test_a_damaged_pointer_is_one_clear_line(registry: Path, damage: str) -> None:
    (registry / "digits" / "current.json").write_text(damage)
    with pytest.raises(ModelFileError, match="is damaged"):
        current(registry / "digits")
    with pytest.raises(ModelFileError, match="is no registry entry"):
        current(registry / "absent")


def test_a_pointer_cannot_lead_outside_its_folder(registry: Path) -> None:
    file = registry / "digits" / "current.json"
    values = json.loads(file.read_text())
    values["version"] = "../../one"
    values["digests"]["../../one"] = values["digests"]["0001"]
    file.write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match="is damaged"):
        current(registry / "digits")


def test_readers_never_see_a_half_and_writers_wait_for_each_other(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    sources = [folder(tmp_path / f"m{i}", 0.2 + i, measured(0.9 - i / 100)) for i in range(6)]
    stop, seen, failed = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                version, place = current(entry)
                atonce.load(place)
                seen.add(version)
            except Exception as problem:
                failed.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    code = "import sys; from atonce.exchange.registry import promote; promote(sys.argv[1], sys.argv[2], 'digits', force='race')"
    others = [subprocess.Popen([sys.executable, "-c", code, str(source), str(registry)]) for source in sources[:2]]
    for source in sources[2:]:
        promote(source, registry, "digits", force="race")
    assert [other.wait(120) for other in others] == [0, 0]
    stop.set()
    reader.join()
    assert not failed
    assert seen
    assert [each["version"] for each in history(entry)] == [f"{i:04d}" for i in range(1, 8)]
    assert {each["state"] for each in versions(entry)} == {"whole"}


# ---- what servers find


def test_what_servers_find_stands_in_the_history_and_moves_nothing(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    assert marks(entry) == {}
    assert mark(entry, "0001", "proved", "a day without faults")
    assert not mark(entry, "0001", "proved", "again"), "no news"
    promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits")
    assert mark(entry, "0002", "refused", "its network failed")
    assert marks(entry) == {"0001": "proved", "0002": "refused"}
    assert current(entry)[0] == "0002"
    assert history(entry)[-1] | {"at": ""} == {
        "at": "",
        "action": "refused",
        "version": "0002",
        "before": "0002",
        "reason": "its network failed",
    }
    assert versions(entry)[0]["promoted"] == history(entry)[0]["at"]
    assert roll_back(entry).version == "0001", "words of servers are no promotions"
    mark(entry, "0002", "tried", "its owner asked for it")
    assert list(marks(entry).items()) == [("0001", "proved"), ("0002", "tried")]
    with pytest.raises(InputError, match="has no version 0007: it has 0001, 0002"):
        mark(entry, "0007", "proved", "")
    with pytest.raises(InputError, match="'liked' is nothing"):
        mark(entry, "0001", "liked", "")


def test_a_roll_back_speaks_against_what_it_leaves(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits")
    promote(folder(tmp_path / "three", 0.3, measured(0.7)), registry, "digits")
    mark(entry, "0002", "refused", "blurred")
    roll_back(entry)
    assert marks(entry) == {"0002": "refused", "0003": "refused"}, "0002 had been taken back itself"
    roll_back(entry)
    assert marks(entry) == {"0003": "refused", "0002": "refused", "0001": "proved"}


def test_the_folder_of_any_version(registry: Path, tmp_path: Path) -> None:
    entry = registry / "digits"
    promote(folder(tmp_path / "two", 0.2, measured(0.8)), registry, "digits")
    assert folder_of(entry, "0001") == entry / "versions" / "0001"
    with pytest.raises(ModelFileError, match="has no version '0003'"):
        folder_of(entry, "0003")
    (entry / "versions" / "0001" / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="changed after its promotion"):
        folder_of(entry, "0001")
