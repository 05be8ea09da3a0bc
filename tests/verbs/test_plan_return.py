"""The verb ``plan return``: given numbers, measured ones, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atonce import cli
from atonce.planning import ways
from atonce.reports.pictures import is_ours


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "_SINGLES", 3)
    monkeypatch.setattr(ways, "_BATCHES", 3)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["plan", "return", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


GIVEN = ("--seconds-before", "0.36", "--seconds-after", "0.01")


def test_given_numbers_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # 0.36 s and 0.01 s at full use and 3.6 an hour: 0.36 and 0.01 a thousand; a million a day: 350 saved; 700 / 350 = 2 days.
    words = ["--images-per-day", "1000000", "--price-per-hour", "3.6", "--utilisation", "1", "--once", "700"]
    latency = ["--latency-before", "1.8", "--latency-after", "0.05", "--calls-before", "35"]
    status, out, err = call(capsys, *GIVEN, *words, *latency, "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["before"]["per_1000"] == pytest.approx(0.36)
    assert facts["after"]["per_1000"] == pytest.approx(0.01)
    assert facts["break_even_days"] == pytest.approx(2.0)
    assert facts["faster"] == pytest.approx(36.0)
    sources = {each["name"]: each["source"] for each in facts["assumptions"]}
    assert sources["once"] == sources["utilisation"] == sources["before: device time"] == "given"
    assert sources["watts"] == "default"
    _, out, _ = call(capsys, *GIVEN, *words, *latency)
    assert "36 times cheaper, one image 36 times sooner; saves 350 USD" in out
    assert "pays back what it costs once (700 USD) after 2 days, 2 million images" in out
    for name in ("images_per_day", "price_per_hour", "watts", "price_per_kwh", "utilisation", "overhead", "once"):
        assert any(line.split()[:1] == [name] for line in out.splitlines())


def test_power_that_is_paid_for_apart_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--price-per-hour", "0", "--watts", "1000", "--price-per-kwh", "0.4", "--overhead", "1.5", "--json")
    _, with_power, _ = call(capsys, *GIVEN, *words, "--no-power-included")
    _, without, _ = call(capsys, *GIVEN, *words, "--power-included")
    assert json.loads(with_power)["before"]["per_1000"] == pytest.approx(0.15 * 0.4)  # 360 s at 1,000 W, times 1.5
    assert json.loads(without)["before"]["per_1000"] == 0


def test_what_is_dearer_never_pays(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--seconds-before", "0.01", "--seconds-after", "0.36", "--once", "5")
    assert "36 times dearer" in out
    assert "it never pays back" in out


def test_a_model_is_measured_against_35_calls_of_its_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(capsys, "digits", "--batch", "4", "--out", "return.png", "--json")
    assert status == 0
    assert "timing" in err
    facts = json.loads(out)
    assert (facts["before"]["way"]["calls"], facts["after"]["way"]["calls"]) == (35, 1)
    assert facts["before"]["way"]["source"] == "measured"
    assert facts["before"]["way"]["note"].startswith("no baseline was given: the same network called 35 times; here, cpu")
    assert facts["after"]["way"]["latency"] > 0
    assert facts["cheaper"] > 1
    assert is_ours(tmp_path / "return.png")


def test_a_measured_model_against_a_given_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "digits", "--seconds-before", "100", "--batch", "4", "--quiet", "--json", "--steps", "2")
    assert status == 0
    facts = json.loads(out)
    assert facts["before"]["way"]["source"] == "given"
    assert facts["after"]["way"]["calls"] == 2
    assert facts["faster"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to measure: name a model"),
        (["--seconds-after", "1"], "there is nothing to measure"),
        (["no-such-model"], "no-such-model"),
        (["digits", "--before", "no-such-model"], "no-such-model"),
        (["digits", "--before", "digits", "--seconds-before", "1"], "--before digits would be measured, but the seconds"),
        (["digits", "--seconds-before", "1", "--seconds-after", "1"], "MODEL digits would be measured"),
        ([*GIVEN, "--images-per-day", "0"], "images_per_day is 0, must be above 0 images"),
        ([*GIVEN, "--images-per-day", "-7"], "images_per_day is -7"),
        ([*GIVEN, "--utilisation", "1.5"], "utilisation is 1.5"),
        ([*GIVEN, "--watts", "nan"], "watts is nan"),
        ([*GIVEN, "--price-per-hour", "1e12"], "price_per_hour is 1e+12, more than makes sense"),
        ([*GIVEN, "--overhead", "0.5"], "overhead is 0.5, must be at least 1"),
        ([*GIVEN, "--once", "-1"], "once is -1"),
        (["--seconds-before", "-1", "--seconds-after", "1"], "seconds of before is -1"),
        ([*GIVEN, "--latency-after", "0"], "latency of after is 0"),
        (["digits", "--steps", "0"], "steps is 0"),
        (["digits", "--before-steps", "-1"], "before_steps is -1"),
        (["digits", "--batch", "0"], "batch is 0"),
        (["digits", "--device", "tpu"], "tpu"),
        (["digits", "--out", "return.pdf"], "give a name that ends in .png"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str) -> None:
    status, out, err = call(capsys, *words)
    assert status == 2
    assert not out
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
