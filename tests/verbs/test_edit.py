"""The verbs `edit ...`: the known part comes back byte for byte, results are those of the library, bad input is one line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import atonce
from atonce import cli
from atonce.core.images import from_uint8, to_uint8
from atonce.data.sources import open_data
from atonce.editing.classes import guess_labels
from atonce.editing.latent import invert_with_info
from atonce.editing.noise import denoise
from atonce.editing.operators import pixels
from atonce.editing.renoise import local, stroke, variations
from atonce.editing.tasks import colorize, inpaint, upscale
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.reports.pictures import facts_of
from atonce.verbs import edit_files

KNOWN = ("inpaint", "outpaint", "colorize", "upscale", "restore")
NOISE = ("stroke", "variations", "local", "denoise", "interpolate")
DIGITS = open_data("digits", split="test").images
MODEL = atonce.load("digits")


@pytest.fixture(autouse=True)
def _verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs by name, whether or not the table of the command line names them already."""
    for module, names in (("edit", KNOWN), ("edit_noise", NOISE)):
        for name in names:
            monkeypatch.setitem(cli.VERBS, f"edit {name}", (f"{module}:{name}", "an edit"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures of digits and a mask."""
    monkeypatch.chdir(tmp_path)
    save("in.png", DIGITS[0])
    save("other.png", DIGITS[1])
    save("small.png", DIGITS[0, :, ::2, ::2])
    save("mask.png", torch.from_numpy(MASK * np.uint8(255))[None])
    return tmp_path


MASK = np.zeros((8, 8), bool)
MASK[2:6, 2:6] = True


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of RGB pictures 8x8 in three classes, not trained."""
    network = UNetConfig(size=8, image_channels=3, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=3)
    config = ModelConfig(network, Preconditioning("boundary", 0.5, 0.002), labels=("cat", "Dog", "2"))
    folder = tmp_path_factory.mktemp("models") / "colour"
    ConsistencyModel(config, UNet(network, 3)).save_pretrained(folder)
    return folder


def save(name: str, image: torch.Tensor, **options: Any) -> None:
    """An image uint8 [C, H, W] as a file."""
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(name, **options)


def load(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture)


def call(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str, str]:
    status = cli.main(["edit", *shlex.split(words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def done(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    """What an edit that works says with --json."""
    status, out, err = call(capsys, f"{words} --json")
    assert status == 0, err
    return json.loads(out)


# ---- help


@pytest.mark.parametrize("verb", [*KNOWN, *NOISE])
def test_each_verb_has_an_example_that_runs(capsys, here, colour, verb, monkeypatch):
    status, out, _ = call(capsys, f"{verb} --help")
    assert status == 0
    for option in ("--out", "--labels", "--before-after", "--fit", "--device", "--json"):
        assert option in out
    example = re.search(r"Example: atonce edit (.*)", out)
    assert example
    assert example[1].startswith(verb)
    (here / "runs").mkdir()
    (here / "runs" / "colour").symlink_to(colour)
    for name in ("sketch.png", "noisy.png", "grey.png"):
        save(name, DIGITS[0])
    if verb == "upscale":
        save("small.png", DIGITS[0, :, ::2, ::2])
    more = " --labels cat" if verb == "colorize" else ""
    assert call(capsys, example[1] + more)[0] == 0
    assert (here / "out.png").exists()


# ---- what comes out


def test_the_known_pixels_of_a_picture_keep_their_bytes(capsys, here):
    facts = done(capsys, "inpaint digits in.png --mask mask.png --out out.png --before-after both.png")
    out, given_ = load("out.png"), load("in.png")
    assert out.shape == (8, 8)
    assert out.dtype == np.uint8
    assert (out[~MASK] == given_[~MASK]).all()
    assert (out[MASK] != given_[MASK]).any()
    expected = inpaint(MODEL, from_uint8(DIGITS[0]), torch.from_numpy(MASK))
    assert (out == to_uint8(expected)[0].numpy()).all()
    assert (facts["calls"], facts["files"], facts["clamped"], facts["n"]) == (16, ["out.png"], 0.0, 1)
    assert facts["sigmas"] == sorted(facts["sigmas"], reverse=True)
    assert facts["calls"] == len(facts["sigmas"])
    about = facts_of(here / "out.png")
    assert about["edit"] == "inpaint"
    assert str(here) not in json.dumps(about)
    assert load("both.png").shape[2] == 3


@given(values=st.binary(min_size=192, max_size=192), hole=st.binary(min_size=8, max_size=8).filter(any))
def test_every_byte_outside_any_mask_comes_back(tmp_path_factory, colour, values, hole):
    """All bytes of RGB pictures survive reading, editing and writing, whatever the mask."""
    folder = tmp_path_factory.mktemp("edit")
    pixels = np.frombuffer(values, np.uint8).reshape(8, 8, 3)
    mask = np.unpackbits(np.frombuffer(hole, np.uint8)).reshape(8, 8).astype(bool)
    Image.fromarray(pixels).save(folder / "in.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "mask.png")
    words = ["--mask", str(folder / "mask.png"), "--out", str(folder / "out.png"), "--steps", "1", "--labels", "cat"]
    assert cli.main(["edit", "inpaint", str(colour), str(folder / "in.png"), *words]) == 0
    out = load(folder / "out.png")
    assert (out[~mask] == pixels[~mask]).all()


def test_several_results_differ_and_repeat(capsys, here):
    facts = done(capsys, "inpaint digits in.png --mask mask.png --out many --n 3 --steps 2 --seed 5")
    assert facts["files"] == ["000000.png", "000001.png", "000002.png"]
    found = [load(f"many/{name}") for name in facts["files"]]
    assert all((one[~MASK] == load("in.png")[~MASK]).all() for one in found)
    assert len({one.tobytes() for one in found}) == 3
    done(capsys, "inpaint digits in.png --mask mask.png --out one.png --steps 2 --seed 5")
    assert (load("one.png") == found[0]).all()
    done(capsys, "inpaint digits in.png --mask mask.png --out many --n 3 --steps 2 --seed 5")  # what is ours is replaced
    done(capsys, "inpaint digits in.png --mask mask.png --out grid.png --n 3 --steps 2")
    assert load("grid.png").shape[1] > 3 * 8


def test_many_images_of_an_npz_with_their_classes(capsys, here, colour):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez("in.npz", arr_0=images, arr_1=np.array([2, 0, 1]))
    facts = done(capsys, f"inpaint {colour} in.npz --mask mask.png --out out.npz --steps 1 --n 2")
    assert facts["labels"] == [2, 2, 0, 0, 1, 1]
    out = np.load("out.npz")["arr_0"]
    assert out.shape == (6, 8, 8, 3)
    assert (out[:, ~MASK] == images.repeat(2, 0)[:, ~MASK]).all()
    assert done(capsys, f"stroke {colour} in.npz --out s.npz --labels dog 2 CAT")["labels"] == [1, 2, 0]


def test_what_is_transparent_is_made_where_there_is_no_mask(capsys, here):
    alpha = np.where(MASK, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([load("in.png"), alpha])).save("clear.png")
    done(capsys, "inpaint digits clear.png --out a.png --seed 3")
    done(capsys, "inpaint digits in.png --mask mask.png --out b.png --seed 3")
    assert (load("a.png") == load("b.png")).all()
    half = np.where(MASK, 254, 255).astype(np.uint8)  # whatever is not fully opaque is unknown
    Image.fromarray(np.dstack([load("in.png"), half])).save("half.webp", lossless=True, exact=True)
    done(capsys, "inpaint digits half.webp --out c.png --seed 3")
    assert (load("c.png") == load("b.png")).all()
    Image.fromarray(np.dstack([load("in.png"), np.full((8, 8), 255, np.uint8)])).save("opaque.png")
    assert "nothing says" in refused(capsys, "inpaint digits opaque.png --out d.png")


def test_the_orientation_of_exif_is_applied_to_picture_and_transparency(here):
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[0] = 0  # the top row as stored, the right column as seen
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([load("in.png"), alpha])).save("turned.png", exif=exif)
    read = edit_files.read_pictures(Path("turned.png"), 1, 8)
    seen = np.rot90(np.where(alpha == 0, 255, load("in.png")), -1)
    assert (read.images[0, 0].numpy() == seen).all()
    assert read.made is not None
    assert read.made[0, 0, :, 7].all()
    assert not read.made[0, 0, :, :7].any()


def test_grey_and_colour_become_what_the_model_takes(here):
    grey = load("in.png")
    Image.fromarray(np.dstack([grey] * 3)).save("rgb.png")
    assert (edit_files.read_pictures(Path("rgb.png"), 1, 8).images[0, 0].numpy() == grey).all()
    assert (edit_files.read_pictures(Path("in.png"), 3, 8).images[0].numpy() == grey).all()


def test_a_class_that_is_not_given_is_guessed_and_said(capsys, here, colour):
    rgb = ConsistencyModel.from_pretrained(colour)
    x = from_uint8(DIGITS[:1]).expand(1, 3, 8, 8)
    seen = []
    inpaint(rgb, x, torch.from_numpy(MASK), steps=2, callback=lambda info: seen.append(info["labels"].tolist()))
    facts = done(capsys, f"inpaint {colour} in.png --mask mask.png --steps 2 --out a.png")
    assert (facts["labels"], facts["guessed"]) == (seen[0], True)
    facts = done(capsys, f"inpaint {colour} in.png --mask mask.png --steps 2 --out a.png --labels dog")
    assert (facts["labels"], facts["guessed"], facts["calls"]) == ([1], False, 2)
    facts = done(capsys, f"interpolate {colour} in.png other.png --n 2 --iterations 2 --out w.png")
    assert facts["labels"] == guess_labels_of(rgb, from_uint8(DIGITS[:2]).expand(2, 3, 8, 8))
    _, out, _ = call(capsys, f"variations {colour} in.png --n 3 --out b.png")
    assert "3 results" in out
    assert "class guessed" in out


def guess_labels_of(model: ConsistencyModel, x: torch.Tensor) -> list[int]:
    """The classes that are guessed from whole images."""
    return guess_labels(model, x, pixels(torch.zeros(8, 8, dtype=torch.bool)), torch.arange(len(x)), 0, None).tolist()


def test_the_other_edits_are_those_of_the_library(capsys, here, colour):
    x, mask = from_uint8(DIGITS[:1]), torch.from_numpy(MASK)

    def same(name: str, expected: torch.Tensor) -> None:
        made = load(name)
        assert (made == to_uint8(expected).numpy()[0].squeeze()).all()

    done(capsys, "stroke digits in.png --sigma 2 --out a.png --seed 4")
    same("a.png", stroke(MODEL, x, sigma=2.0, seed=4))
    done(capsys, "local digits in.png --mask mask.png --sigma 1 --out b.png")
    same("b.png", local(MODEL, x, mask, sigma=1.0))
    assert (load("b.png")[~MASK] == load("in.png")[~MASK]).all()
    done(capsys, "variations digits in.png --n 2 --seed 1 --out v")
    two = variations(MODEL, x[0], n=2, seed=1)
    same("v/000000.png", two[:1])
    same("v/000001.png", two[1:])
    facts = done(capsys, "denoise digits in.png --out c.png")
    assert facts["estimated"]
    same("c.png", denoise(MODEL, x))
    assert done(capsys, "denoise digits in.png --sigma 0.5 --out d.png")["sigma"] == [0.5]
    same("d.png", denoise(MODEL, x, 0.5))
    rgb = ConsistencyModel.from_pretrained(colour)
    done(capsys, f"colorize {colour} in.png --labels 2 --out e.png")
    expected = to_uint8(colorize(rgb, x, labels=2))[0].permute(1, 2, 0).numpy()
    assert (load("e.png") == expected).all()


def test_an_upscaled_picture_has_the_small_one_as_its_means(capsys, here):
    small = DIGITS[0].double().reshape(1, 4, 2, 4, 2).mean((2, 4)).round().to(torch.uint8)
    save("small.png", small)
    facts = done(capsys, "upscale digits small.png --factor 2 --out out.png")
    expected = upscale(MODEL, from_uint8(small)[None], 2)
    assert (load("out.png") == to_uint8(expected)[0, 0].numpy()).all()
    means = load("out.png").astype(float).reshape(4, 2, 4, 2).mean((1, 3))
    # 0.5 for the rounding of every pixel, and what the clamp at black and white took, in grey levels
    assert np.abs(means - load("small.png")).max() <= 0.51 + 127.5 * facts["clamped"]


def test_the_outpainted_picture_stands_in_its_place(capsys, here):
    facts = done(capsys, "outpaint digits in.png --size 10 12 --place 1 3 --steps 2 --out out.png --before-after both.png")
    out = load("out.png")
    assert out.shape == (10, 12)
    assert (out[1:9, 3:11] == load("in.png")).all()
    assert facts["calls"] % 2 == 0
    assert facts["calls"] > 2  # several windows
    save("piece.png", DIGITS[0, :, 2:6, 1:6])
    done(capsys, "outpaint digits piece.png --steps 2 --out piece-out.png")  # default: the model's frame, in the middle
    assert (load("piece-out.png")[2:6, 1:6] == load("piece.png")).all()


def test_restore_combines_what_is_known(capsys, here, colour):
    facts = done(capsys, "restore digits in.png --mask mask.png --factor 2 --out a.png")
    out, before = (load(n).astype(float).reshape(4, 2, 4, 2).mean((1, 3)) for n in ("a.png", "in.png"))
    known = ~MASK[::2, ::2]
    assert np.abs(out - before)[known].max() <= 1.01 + 127.5 * facts["clamped"]
    done(capsys, "restore digits in.png --mask mask.png --factor 2 --either --out b.png")
    assert (load("b.png")[~MASK] == load("in.png")[~MASK]).all()
    save("tiny.png", torch.from_numpy(before.round().astype(np.uint8))[None])
    save("tiny-mask.png", torch.from_numpy(MASK[::2, ::2] * np.uint8(255))[None])
    done(capsys, "restore digits tiny.png --mask tiny-mask.png --factor 2 --out c.png")  # small already
    assert load("c.png").shape == (8, 8)
    done(capsys, f"restore {colour} in.png --grey --mask mask.png --labels 0 --steps 2 --out d.png --before-after e.png")
    assert load("d.png").shape == (8, 8, 3)


def test_interpolation_ends_at_the_samples_of_its_seeds(capsys, here):
    done(capsys, "interpolate digits --seeds 3 4 --n 3 --out way")
    ends = to_uint8(torch.cat([MODEL.sample(1, seed=3), MODEL.sample(1, seed=4)]))[:, 0].int().numpy()
    assert np.abs(load("way/000000.png").astype(int) - ends[0]).max() <= 1
    assert np.abs(load("way/000002.png").astype(int) - ends[1]).max() <= 1
    facts = done(capsys, "interpolate digits in.png other.png --n 4 --iterations 30 --out pictures")
    _, found = invert_with_info(MODEL, from_uint8(DIGITS[:2]), iterations=30)
    assert facts["error"] == pytest.approx(found.error, rel=1e-3)
    first = from_uint8(torch.from_numpy(load("pictures/000000.png").copy())) - from_uint8(DIGITS[0, 0])
    assert float(first.square().mean().sqrt()) == pytest.approx(found.error[0], abs=0.01)


def test_equal_ends_are_no_fault(capsys, here):
    done(capsys, "interpolate digits --seeds 1 1 --n 2 --out same")
    assert (load("same/000000.png") == load("same/000001.png")).all()


def test_interpolation_between_classes_changes_the_class_in_the_middle(capsys, here, colour):
    done(capsys, f"interpolate {colour} --seeds 1 2 --labels cat dog --n 4 --out both")
    done(capsys, f"interpolate {colour} --seeds 1 2 --labels cat --n 4 --out cat")
    done(capsys, f"interpolate {colour} --seeds 1 2 --labels dog --n 4 --out dog")
    for i in range(4):
        name = f"00000{i}.png"
        assert (load(f"both/{name}") == load(f"{'cat' if i < 2 else 'dog'}/{name}")).all()


# ---- size


def test_pictures_of_other_sizes_are_cropped_or_padded_on_request(capsys, here):
    save("wide.png", torch.arange(16 * 24, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(1, 16, 24))
    square = load("wide.png")[:, 4:20].astype(float).reshape(8, 2, 8, 2).mean((1, 3))
    crop = edit_files.read_pictures(Path("wide.png"), 1, 8, "crop")
    assert np.abs(crop.images[0, 0].numpy() - square).max() <= 0.5
    assert crop.border is None
    pad = edit_files.read_pictures(Path("wide.png"), 1, 8, "pad")
    assert pad.border is not None
    rows = pad.border[0].all(1)  # 24 x 16 shrinks to 8 x 5: three rows of border
    assert int(rows.sum()) == 3
    assert (pad.images[0, 0][0] == pad.images[0, 0][1]).all()
    done(capsys, "inpaint digits wide.png --fit pad --out a.png")  # the border is made
    assert (load("a.png")[~rows.numpy()] == pad.images[0, 0][~rows].numpy()).all()
    big = np.zeros((16, 24), np.uint8)
    big[8, 12] = 255
    Image.fromarray(big).save("big.png")
    mask = edit_files.read_mask(Path("big.png"), (16, 24), 8, "crop")
    assert mask[0].nonzero().tolist() == [[4, 4]]
    done(capsys, "inpaint digits wide.png --mask big.png --fit crop --steps 1 --out b.png")


@given(old=st.integers(1, 40), new=st.integers(1, 40), data=st.data())
def test_a_resized_mask_covers_all_that_it_covered(old, new, data):
    """Pixel k of `new` is true if and only if [k, k + 1) / new meets an interval of `old` that is true."""
    bits = data.draw(st.lists(st.booleans(), min_size=old, max_size=old))
    mask = torch.tensor(bits)[None].expand(old, old)
    out = edit_files.fitted_mask(mask, new, "crop")[0].tolist()
    wanted = [any(b and i * new < (k + 1) * old and (i + 1) * new > k * old for i, b in enumerate(bits)) for k in range(new)]
    assert out == wanted


# ---- bad input


def refused(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """The one line with which bad input is answered."""
    status, out, err = call(capsys, words)
    assert status == 2, (out, err)
    assert not out
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fly digits in.png", "edit"),
        ("inpaint no-model in.png --mask mask.png", "no-model"),
        ("inpaint digits no.png --mask mask.png", "cannot read no.png: No such file"),
        ("inpaint digits in.png --mask no.png", "cannot read no.png: No such file"),
        ("inpaint digits text.png --mask mask.png", "text.png is not a picture"),
        ("inpaint digits cut.png --mask mask.png", "cut.png is truncated"),
        ("inpaint digits . --mask mask.png", "is a folder"),
        ("inpaint digits float.npz --mask mask.png", "arr_0 must be uint8"),
        ("inpaint digits in.png", "give --mask MASK.png"),
        ("inpaint digits in.png --mask small.png", "the mask small.png is 4x4, the image 8x8"),
        ("inpaint digits in.png --mask black.png", "no white pixel"),
        ("inpaint digits big.png --mask mask.png", "big.png is 12x10, and 8x8 is needed: give --fit crop"),
        ("inpaint digits in.png --mask mask.png --labels 3", "this model is unconditional: leave them out"),
        ("inpaint digits in.png --mask mask.png --steps 0", "steps is 0"),
        ("inpaint digits in.png --mask mask.png --n 0", "n is 0, must be at least 1"),
        ("inpaint digits in.png --mask mask.png --batch 0", "batch is 0"),
        ("inpaint digits in.png --mask mask.png --sigmas 1 2", "2"),
        ("inpaint digits in.png --mask mask.png --sigmas 1000", "1000"),
        ("inpaint digits in.png --mask mask.png --guidance 2", "guidance"),
        ("inpaint digits in.png --mask mask.png --device tpu", "tpu"),
        ("inpaint digits in.png --mask mask.png --out in.png", "in.png is an input of this edit"),
        ("inpaint digits in.png --mask mask.png --out other.png", "other.png exists and was not made by atonce"),
        ("inpaint digits in.png --mask mask.png --out theirs", "theirs/000000.png exists and was not made by atonce"),
        ("inpaint digits in.png --mask mask.png --out out.gif", "'.gif'"),
        ("inpaint digits in.png --mask mask.png --before-after out.txt", "out.txt must be a .png"),
        ("inpaint digits in.png --mask mask.png --before-after other.png", "other.png exists"),
        ("inpaint digits in.png --mask mask.png --before-after edited.png", "two names"),
        ("inpaint digits in.png --mask mask.png --fit squeeze", "squeeze"),
        ("interpolate fashion-mnist --seeds 1 2", "labels are missing"),
        (
            "inpaint fashion-mnist in.png --mask mask.png --fit crop --labels hat",
            "there is no class 'hat': give a number from 0 to 9",
        ),
        ("inpaint fashion-mnist in.png --mask mask.png --fit crop --labels 10", "label 10 is out of range"),
        ("inpaint fashion-mnist in.png --mask mask.png --fit crop --labels 1 2", "2 labels are given for 1 images"),
        ("upscale digits in.png --factor 3", "factor 3 does not divide images of 8 x 8: possible are 2, 4, 8"),
        ("upscale digits in.png --factor 0", "factor is 0"),
        ("upscale digits in.png --factor 2", "in.png is 8x8, and 4x4 is needed (8x8 of the model over the factor 2)"),
        ("colorize digits in.png", "makes grey pictures"),
        ("restore digits in.png", "give --mask, --grey or --factor"),
        ("restore digits in.png --grey", "makes grey pictures: leave it out"),
        ("restore digits in.png --mask odd.png --factor 2", "mask whole patches"),
        ("outpaint digits in.png --size 6 20", "size is (6, 20)"),
        ("outpaint digits in.png --size 0 8", "size is 0 8"),
        ("outpaint digits in.png --size 12 12 --place 5 0", "place is (5, 0)"),
        ("stroke digits in.png --sigma 100", "sigma is 100, must be above 0.002 and at most 80"),
        ("stroke digits in.png --sigma 2 --sigmas 1", "leave sigma out"),
        ("variations digits in.png --sigma 0", "sigma is 0"),
        ("local digits in.png", "give --mask"),
        ("denoise digits in.png --sigma 0", "sigma is 0"),
        ("denoise digits in.png --sigma nan", "sigma is nan"),
        ("interpolate digits in.png", "give two pictures, or --seeds A B"),
        ("interpolate digits", "give two pictures, or --seeds A B"),
        ("interpolate digits in.png other.png --seeds 1 2", "give two pictures, or --seeds A B"),
        ("interpolate digits --seeds 1 2 --n 1", "n is 1, must be at least 2"),
        ("interpolate digits in.png other.png --iterations 0", "iterations is 0"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, here, words, said):
    (here / "text.png").write_text("no picture")
    (here / "cut.png").write_bytes((here / "in.png").read_bytes()[:60])
    np.savez("float.npz", arr_0=np.zeros((1, 8, 8, 1), np.float32))
    save("black.png", torch.zeros(1, 8, 8, dtype=torch.uint8))
    save("big.png", torch.zeros(1, 10, 12, dtype=torch.uint8))
    odd = torch.zeros(1, 8, 8, dtype=torch.uint8)
    odd[0, 0, 0] = 255
    save("odd.png", odd)
    (here / "theirs").mkdir()
    save("theirs/000000.png", DIGITS[0])
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert said in refused(capsys, words)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_an_absurdly_large_picture_is_refused_before_it_is_decoded(capsys, here, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "absurdly large" in refused(capsys, "inpaint digits in.png --mask mask.png")
