"""Many images: never in the place of something else, never mixed with others, and no work is done for a bad job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

import atonce
from atonce.core.errors import InputError, StorageError
from atonce.model import ConsistencyModel
from atonce.reports import file_target
from atonce.reports.begun import lock
from atonce.reports.bulk import Made, generate
from atonce.reports.job import Job
from atonce.reports.pictures import facts_of

NAMES = ["s.png", "s.webp", "s.zip", "s.npz", "s"]
JOB = Job(n=20, first=5, batch=8)  # cells 0-7, 8-15, 16-23, 24-31


class Soon(Event):
    """A request to stop that comes after two of the four cells: it is asked for before each cell and at each step."""

    asked = 0

    def is_set(self) -> bool:
        self.asked += 1
        return self.asked > 4


@pytest.fixture(scope="module")
def model() -> ConsistencyModel:
    return atonce.load("digits")


@pytest.fixture(scope="module")
def conditional() -> ConsistencyModel:
    return atonce.load("fashion-mnist")


def content(out: Path) -> dict[str, bytes]:
    """All that is in an output, by name."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())} if out.is_dir() else {"": out.read_bytes()}


def make(model: ConsistencyModel, job: Job, out: Path, **options) -> Made:
    return generate(model, job, out, quiet=True, **options)


OTHERS = [
    ({"seed": 1}, "seed 0 there, 1 here"),
    ({"n": 21}, "n 20 there, 21 here"),
    ({"first": 6}, "first 5 there, 6 here"),
    ({"steps": 2}, "steps 1 there, 2 here"),
    ({"sigmas": (40.0,)}, r"sigmas None there, \[40.0\] here"),
    ({"sampler": "restart"}, "sampler auto there, restart here"),
    ({"batch": 4}, "batch 8 there, 4 here"),
    ({"seeds": tuple(range(20))}, "seed 0 there, None here"),
]


@pytest.fixture(scope="module")
def begun(model: ConsistencyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("begun")
    for name in NAMES:
        assert make(model, JOB, root / name, stop=Soon()).images == 11
    return root


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("change", "said"), OTHERS)
def test_other_settings_are_refused_on_what_is_half_made(
    model: ConsistencyModel, begun: Path, name: str, change: dict, said: str
) -> None:
    if name == "s" and ("n" in change or "first" in change):
        pytest.skip("a folder may get further parts")
    before = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=said):
        make(model, replace(JOB, **change), begun / name)
    assert {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()} == before


def test_another_model_is_refused_on_what_is_half_made(conditional: ConsistencyModel, begun: Path) -> None:
    with pytest.raises(InputError, match="model digits, sha256 .* there, fashion-mnist, sha256"):
        make(conditional, JOB, begun / "s.zip")


@pytest.mark.parametrize("name", ["s.zip", "s.npz", "s"])
def test_finished_work_is_not_replaced_by_other_settings(model: ConsistencyModel, tmp_path: Path, name: str) -> None:
    make(model, JOB, tmp_path / name)
    before = content(tmp_path / name)
    with pytest.raises(InputError, match="seed 0 there, 1 here"):
        make(model, replace(JOB, seed=1), tmp_path / name)
    assert content(tmp_path / name) == before


@pytest.mark.parametrize("name", ["s.png", "s.webp"])
def test_a_grid_is_replaced(model: ConsistencyModel, tmp_path: Path, name: str) -> None:
    make(model, JOB, tmp_path / name)
    before = content(tmp_path / name)
    make(model, replace(JOB, seed=1), tmp_path / name)
    assert content(tmp_path / name) != before
    assert facts_of(tmp_path / name)["seed"] == 1


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_file_of_somebody_else_is_left_alone(model: ConsistencyModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(InputError, match="was not made by atonce"):
        make(model, JOB, tmp_path / name)
    assert content(tmp_path) == {name: b"precious"}


def test_a_file_that_appears_meanwhile_is_left_alone(
    model: ConsistencyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "s.npz", file_target.write_output

    def meanwhile(*args, **options):
        write(*args, **options)
        out.write_bytes(b"precious")

    monkeypatch.setattr(file_target, "write_output", meanwhile)
    with pytest.raises(InputError, match="was not made by atonce"):
        make(model, JOB, out)
    assert out.read_bytes() == b"precious"
    monkeypatch.undo()
    out.unlink()
    assert make(model, JOB, out).found == 20


@pytest.mark.parametrize("name", ["letter.txt", "000007.png", "dataset.json"])
def test_a_folder_of_other_things_is_left_alone(model: ConsistencyModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(InputError, match=f"holds other things \\({name}\\)"):
        make(model, JOB, tmp_path)
    assert content(tmp_path) == {name: b"precious"}


def test_a_picture_of_somebody_else_in_our_folder_is_left_alone(model: ConsistencyModel, tmp_path: Path) -> None:
    out = tmp_path / "s"
    make(model, JOB, out)
    Image.new("L", (8, 8)).save(out / "000030.png")
    (out / "letter.txt").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"000030\.png exists and was not made by atonce"):
        make(model, replace(JOB, first=25, n=10), out)
    assert make(model, replace(JOB, first=31, n=9), out).finished
    assert (out / "letter.txt").read_bytes() == b"precious"


def test_two_commands_do_not_make_one_file_together(model: ConsistencyModel, tmp_path: Path) -> None:
    parts = tmp_path / ".s.npz.parts"
    parts.mkdir()
    with lock(parts, wait=False) as held:
        assert held
        with pytest.raises(InputError, match="another process is making"):
            make(model, JOB, tmp_path / "s.npz")
    assert make(model, JOB, tmp_path / "s.npz").finished


def test_parts_that_are_not_ours_are_left_alone(model: ConsistencyModel, tmp_path: Path) -> None:
    parts = tmp_path / ".s.npz.parts"
    parts.mkdir()
    (parts / "letter.txt").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"letter\.txt"):
        make(model, JOB, tmp_path / "s.npz")
    (parts / "letter.txt").unlink()
    (parts / "manifest.json").write_text("[")
    with pytest.raises(InputError, match=r"manifest\.json is damaged: delete"):
        make(model, JOB, tmp_path / "s.npz")


def test_labels_that_cannot_be_read_are_left_alone(conditional: ConsistencyModel, tmp_path: Path) -> None:
    make(conditional, Job(n=2), tmp_path / "s")
    (tmp_path / "s" / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json cannot be read"):
        make(conditional, Job(n=2, first=2), tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "n is 0, must be from 1"),
        ({"n": 10**9}, "n is 1,000,000,000, must be from 1 to 100,000,000"),
        ({"first": -1}, "first is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"sigmas": (1.0, 2.0)}, "must descend"),
        ({"sampler": "heun"}, "does not fit a consistency model"),
        ({"ema": "0.5"}, "ema '0.5' is not in this model"),
        ({"guidance": 2.0}, "was not trained with guidance"),
        ({"labels": (1,)}, "this model is unconditional"),
        ({"seeds": (1, 2)}, "2 seeds are given for 20 images"),
        ({"seeds": (1 << 63,) * 20}, "seed 9223372036854775808 is out of range"),
    ],
)
def test_a_bad_job_is_refused_before_anything_is_done(model: ConsistencyModel, tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(model, replace(JOB, **change), tmp_path / "s.zip")
    assert not list(tmp_path.iterdir())


def test_classes_that_do_not_fit(conditional: ConsistencyModel, tmp_path: Path) -> None:
    for labels, said in (((10,), "label 10 is out of range"), ((1, 2), "2 labels are given for 20 images")):
        with pytest.raises(InputError, match=said):
            make(conditional, replace(JOB, labels=labels), tmp_path / "s.zip")
    with pytest.raises(InputError, match="scale 1.5 was fixed"):
        make(conditional, replace(JOB, guidance=3.0), tmp_path / "s.zip")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(model: ConsistencyModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file" / "s.npz", tmp_path / "file" / "s", tmp_path / ("x" * 300), tmp_path / ("x" * 300 + ".npz")):
        with pytest.raises((StorageError, InputError), match="cannot write|no folder"):
            make(model, JOB, out)


def test_the_manifest_is_the_settings(model: ConsistencyModel, tmp_path: Path) -> None:
    assert make(model, JOB, tmp_path / "s.npz", stop=Soon()).images == 11
    facts = json.loads((tmp_path / ".s.npz.parts" / "manifest.json").read_text())
    assert facts | {"seed": 0, "first": 5, "n": 20, "steps": 1, "batch": 8, "calls": 1, "device": "cpu float32"} == facts
    assert facts["model"].startswith("digits, sha256 ")
