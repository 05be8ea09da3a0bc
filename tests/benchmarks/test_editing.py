"""The benchmark of edits: baselines and measures against known answers, the page's numbers, and every line that it shows."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atonce import cli

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "editing.md").read_text()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def base(module: Any) -> Any:
    return module("editing_baselines")


def ramps(n: int = 3, side: int = 8) -> np.ndarray:
    """Pictures a + b row + c column, within [-1, 1]."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    a = np.random.default_rng(0).uniform(-0.3, 0.3, (n, 3))
    return a[:, 0, None, None] + a[:, 1, None, None] * rows + a[:, 2, None, None] * columns


def some_masks(side: int = 8) -> dict[str, np.ndarray]:
    middle, half = np.zeros((side, side), bool), np.zeros((side, side), bool)
    middle[2:6, 2:6], half[:, side // 2 :] = True, True
    random = np.random.default_rng(1).random((side, side)) < 0.5
    return {"middle": middle, "half": half, "outside": ~middle, "random": random}


# ---- baselines


def test_fills_keep_what_is_known_and_give_known_answers(base):
    x = np.array([[[0.0, 0.5, 9.0], [0.0, 0.5, 9.0]]])
    mask = np.array([[[False, False, True], [False, False, True]]])
    assert base.mean_fill(x, mask)[0].tolist() == [[0.0, 0.5, 0.25], [0.0, 0.5, 0.25]]
    assert base.nearest_fill(x, mask)[0].tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


@pytest.mark.parametrize("name", ["middle", "half", "outside", "random"])
def test_biharmonic_filling_continues_a_ramp_exactly(base, name):
    x, mask = ramps(), np.repeat(some_masks()[name][None], 3, 0)
    holes = np.where(mask, 7.0, x)
    assert base.biharmonic_fill(holes, mask) == pytest.approx(x, abs=1e-8)
    each = np.stack([mask[0], ~mask[0], mask[0]])  # other masks for other pictures
    assert base.biharmonic_fill(np.where(each, 7.0, x), each)[2] == pytest.approx(x[2], abs=1e-8)


def test_the_linear_guess_finds_what_three_numbers_decide(base):
    """Ramps have three unknowns, so half a picture, four means, or little noise tell all of it."""
    linear = base.Linear(ramps(2000))
    x = ramps(5)
    mask = np.repeat(some_masks()["half"][None], 5, 0)
    assert linear.fill(np.where(mask, 7.0, x), mask) == pytest.approx(x, abs=0.01)
    small = x.reshape(5, 2, 4, 2, 4).mean((2, 4))
    large = linear.enlarge(small, 4)
    assert large == pytest.approx(x, abs=0.01)
    assert large.reshape(5, 2, 4, 2, 4).mean((2, 4)) == pytest.approx(small, abs=1e-9)
    noisy = x + 0.3 * np.random.default_rng(2).standard_normal(x.shape)
    # three numbers out of 64: less than 3/64 of the noise is left
    assert ((linear.denoise(noisy, 0.3) - x) ** 2).mean() < 1.5 * 0.09 * 3 / 64
    assert linear.denoise(x, 1e-9) == pytest.approx(x, abs=1e-6)
    assert linear.denoise(x, 1e6) == pytest.approx(np.repeat(ramps(2000).mean(0)[None], 5, 0), abs=1e-6)


def test_total_variation_minimises_its_objective(base):
    generator = np.random.default_rng(3)
    noisy, weight = generator.uniform(-0.8, 0.8, (1, 8, 8)), 0.2

    def objective(x: np.ndarray) -> float:
        return float(((x - noisy) ** 2).sum() / 2 + weight * np.sqrt((base._gradient(x) ** 2).sum(0)).sum())

    best = base.total_variation(noisy, weight, 3000)
    assert best.mean() == pytest.approx(noisy.mean())
    assert all(objective(best) < objective(best + 0.02 * generator.standard_normal(best.shape)) for _ in range(50))
    p = generator.standard_normal((2, 1, 8, 8))
    assert (base._gradient(noisy) * p).sum() == pytest.approx(-(noisy * base._divergence(p)).sum())
    assert base.total_variation(np.full((1, 8, 8), 0.3), weight) == pytest.approx(np.full((1, 8, 8), 0.3))


def test_enlarging_and_smoothing_keep_constants(base):
    x = np.full((2, 4, 4), 0.25)
    for out in (base.replicate(x, 2), base.bicubic(x, 2)):
        assert out == pytest.approx(np.full((2, 8, 8), 0.25))
    assert base.replicate(np.arange(4.0).reshape(1, 2, 2), 2)[0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    for out in (base.gaussian_filter(x, 1.0), base.local_wiener(x, 0.1)[:, 1:-1, 1:-1]):
        assert out == pytest.approx(np.full(out.shape, 0.25))
    assert base.tuned(lambda x, width: x * width, x, x * 0.5, [0.25, 0.5, 1.0]) == 0.5


# ---- measures


def test_measures_have_their_known_values(base):
    x, y = np.zeros((1, 16, 16)), np.full((1, 16, 16), 0.2)
    mask = np.zeros((1, 16, 16), bool)
    mask[:, 0] = True
    y[:, 1:] = 5.0
    assert base.squared_errors(x, y, mask) == pytest.approx(0.04)
    assert base.psnr(0.04) == pytest.approx(20.0)
    assert base.psnr(4.0) == 0.0
    z = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16))
    assert base.ssim(z, z) == pytest.approx(1.0)
    a, b, c1 = 0.3, 0.5, 0.01**2  # intensities from black, 0, to white, 1
    flat = base.ssim(np.full((1, 16, 16), 2 * a - 1), np.full((1, 16, 16), 2 * b - 1))
    assert flat == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))
    assert base.ssim(z, -z).max() < 0  # the negative


def test_the_gain_over_a_baseline_is_that_of_pairs(module):
    editing = module("editing")
    errors = np.random.default_rng(0).uniform(0.01, 1, 50)
    value, low, high = editing.gain(errors, 2 * errors)  # half the error on each picture: 3 dB, whatever the draw
    assert (value, low, high) == pytest.approx((10 * np.log10(2),) * 3)


def test_the_distance_of_pictures_to_themselves_is_nothing(module):
    editing = module("editing")
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    value, (low, high) = editing.frechet(features, features)
    assert (value, low, high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    shifted, (low, high) = editing.frechet(features + 1, features)
    assert (shifted, low, high) == pytest.approx((5.0, 5.0, 5.0), rel=1e-5)  # no draw of pairs changes a shift


# ---- the whole


def test_tasks_are_measured_kept_and_reported(module, monkeypatch, tmp_path):
    """At tiny size: measure, go on without measuring again, and write the page twice alike."""
    editing, report = module("editing"), module("editing_report")
    held = editing.held_out("digits", 24)
    monkeypatch.setattr(editing, "BY_STEPS", {"digits": {"half": (1,)}})
    monkeypatch.setattr(editing, "AVERAGED", 2)
    monkeypatch.setattr(report, "AVERAGED", 2)
    every = editing.tasks(held)
    assert list(every) == ["centre", "half", "random", "outpaint", "x2", "x4", "noise-0.3", "noise-0.6", "stroke"]
    kept: dict[str, Any] = {}
    for key in ("half", "noise-0.6"):
        kept[key] = {"title": every[key].title, "methods": {}}
        editing.run_task(held, every[key], kept[key]["methods"], lambda: None)
    half = kept["half"]["methods"]
    assert {name for name, m in half.items() if m["kind"] == "ours"} == {"atonce", "mean of 2 edits", "atonce, 1 step"}
    assert half["atonce"]["known bytes changed"] == 0
    assert half["atonce"]["gain"]["over"] in half
    assert half["mean of 2 edits"]["rms"][0] < half["atonce"]["rms"][0]
    assert all(low <= value <= high for value, low, high in (m["psnr"] for m in half.values()))
    monkeypatch.setattr(editing, "inpaint", None)
    editing.run_task(held, every["half"], half, lambda: None)  # nothing is missing: no edit is made
    record = {"command": "c", "commit": "a" * 40, "created": "2026-01-01", "measured": {}}
    record["measured"]["digits"] = {
        "pictures": 24,
        "originals": {"accuracy": 1.0, "frechet of as many other pictures": 2.0},
        "tasks": kept,
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    marks = "\n".join(f"<!-- {name} -->\n<!-- end of {name} -->" for name in ("tables", "explanation", "steps"))
    (tmp_path / "page.md").write_text(f"# Page\n\n{marks}\n\nend\n")
    monkeypatch.setattr(report, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    report.write()
    once = (tmp_path / "page.md").read_text()
    report.write()
    assert (tmp_path / "page.md").read_text() == once
    assert once.startswith("# Page")
    assert once.endswith("end\n")
    assert f"| **atonce** | {half['atonce']['psnr'][0]:.1f} ± " in once
    assert "| Digits: inpaint the right half | 1 |" in once
    assert "Against the best simple baseline of each of 2 tasks" in once
    (tmp_path / "page.md").write_text("# no marks")
    with pytest.raises(SystemExit, match="<!-- tables -->"):
        report.write()


def test_the_error_of_an_edit_is_divided_as_it_should_be(module):
    """Bias 0.09 and scatter 0.16: one edit errs by 0.25, the mean of four by 0.13."""
    report = module("editing_report")
    several = f"mean of {report.AVERAGED} edits"
    errors = {"atonce": 0.25, several: 0.09 + 0.16 / report.AVERAGED}
    methods = {name: {"kind": "ours", "rms": [e**0.5], "psnr": [report.base.psnr(e)]} for name, e in errors.items()}
    text = report.spread({"title": "a task", "methods": methods})
    assert "64 % of the squared error" in text
    assert f"infinitely many would have {10 * np.log10(4 / 0.09):.1f} dB" in text


def test_pictures_are_those_of_the_benchmark(module):
    report = module("editing_report")
    held, images, labels = report.pictures_of("digits", 10)
    assert labels is None
    assert images.shape == (10, 1, 8, 8)
    assert (held.judge.predictions(images) == torch.arange(10)).double().mean() > 0.8
    assert report.holes(images, "half")[0, 0].nonzero()[:, 1].min() == 4


# ---- what the page shows


def commands() -> list[str]:
    return re.findall(r"^    atonce (edit .*)$", PAGE, re.MULTILINE)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_its_pictures_and_marks_and_no_gaps():
    assert len(commands()) >= 10
    assert len(blocks()) >= 10
    for path in re.findall(r"\]\((pictures/[^)]*)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for name in ("tables", "explanation", "steps"):
        assert PAGE.count(f"<!-- {name} -->") == PAGE.count(f"<!-- end of {name} -->") == 1
    assert not re.search(r"^[A-Z]{3,}$", PAGE, re.MULTILINE)  # a place that was to be filled


def test_the_bias_on_the_page_is_that_which_the_oracle_asserts():
    """Steps, error of the mean, distance and spread of each row, in order."""
    oracle = (ROOT / "tests" / "oracles" / "test_editing.py").read_text().split('"""')[1]
    asserted = re.findall(r"(\d+)\s+(\d?\.\d{3})\s+(\d?\.\d{3})\s+(\d\.\d{3})", oracle)
    shown = re.findall(r"\| (\d+) \| (\d\.\d{3}) \| (\d\.\d{3}) \| (\d\.\d{3}) \|", PAGE)
    assert len(shown) >= 16
    assert [tuple(map(float, row)) for row in shown] == [tuple(map(float, row)) for row in asserted]


@pytest.mark.slow
@pytest.mark.data
def test_the_python_of_the_page_runs(data_root, monkeypatch):
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    made = {"__name__": "page"}
    exec("\n".join(blocks()), made)
    assert torch.equal(made["again"][:, :, :14], made["x"][:, :, :14])  # what is left of the mask stays
    assert not torch.equal(made["again"], made["x"])
    assert 0.2 < float(made["sigma"]) < 0.5  # of noise of 0.3
    assert made["turned"].shape == (1, 1, 28, 28)
    assert made["way"].shape == (8, 1, 28, 28)
    assert all(bool(torch.isfinite(made[name]).all()) for name in ("made", "turned", "way", "z_a", "z_b"))


@pytest.mark.slow
@pytest.mark.data
def test_the_commands_of_the_page_run(data_root, monkeypatch, tmp_path, capsys):
    import atonce
    from atonce.data.sources import open_data

    x = open_data(str(data_root / "fashion-mnist"), split="test").images[0, 0].numpy()
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((28, 28), np.uint8)
    mask[8:20, 8:20] = 255
    small = x.reshape(7, 4, 7, 4).mean((1, 3)).astype(np.uint8)
    files = {"boot": x, "other": x[:, ::-1], "grey": x, "noisy": x, "sketch": x, "mask": mask, "hole": mask}
    for name, image in {**files, "middle": x[7:21, 7:21], "small": small}.items():
        Image.fromarray(image).save(f"{name}.png")
    model = atonce.load("fashion-mnist")
    namespace: dict[str, Any] = {"model": model, "x": torch.zeros(1, 28, 28), "label": 9, "atonce": atonce}
    exec(next(block for block in blocks() if "image_channels=3" in block), namespace)
    namespace["colour"].save_pretrained("runs/colour")
    for command in commands():
        more = ["--steps", "1"] if "steps" not in command and "denoise" not in command and "interpolate" not in command else []
        more += ["--iterations", "5"] if "other.png" in command else []
        assert cli.main([*shlex.split(command), *more]) == 0, (command, capsys.readouterr().err)
        assert Path("out.png").exists()
        Path("out.png").unlink()
