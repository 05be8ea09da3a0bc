"""The Learn tab without a browser: its world, its trained model, its formulas, its words and its quiz."""

from __future__ import annotations

import base64
import html
import json
import re
import struct
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

from atonce.noise.curricula import ict_stages
from atonce.noise.draws import lognormal_interval_pmf
from atonce.objectives.distances import huber_constant
from atonce.studio import learn_train
from atonce.studio.learn_formula import formula, prose
from atonce.studio.learn_net import PRECONDITIONING, WEIGHTS, PlaneNetwork, answer, packed, record, trained
from atonce.studio.learn_page import page_html
from atonce.studio.learn_quiz import QUESTIONS, quiz_html
from atonce.studio.learn_steps import STEPS
from atonce.studio.learn_world import (
    P_MEAN,
    P_STD,
    RHO,
    S0,
    S1,
    SIGMA_DATA,
    SIGMA_MAX,
    SIGMA_MIN,
    facts,
    noise_levels,
    spread,
    world,
)


def test_the_world_has_about_the_papers_sigma_data() -> None:
    # over both coordinates: the clusters' own variance and that of their means, by the law of total variance
    assert spread() == pytest.approx(SIGMA_DATA, abs=0.01)
    drawn = world().sample(60_000, 1)
    assert float(drawn.var(0).mean().sqrt()) == pytest.approx(spread(), abs=0.005)


def test_the_page_is_told_the_same_world() -> None:
    told = json.loads(json.dumps(facts()))
    mixture = world()
    assert told["means"] == mixture.means.tolist()
    assert told["stds"] == mixture.stds.tolist()
    assert told["weights"] == mixture.weights.tolist()
    assert (told["sigma_min"], told["sigma_max"], told["rho"], told["sigma_data"]) == (SIGMA_MIN, SIGMA_MAX, RHO, SIGMA_DATA)
    assert (told["p_mean"], told["p_std"], told["s0"], told["s1"]) == (P_MEAN, P_STD, S0, S1)
    assert len(told["points"]) == len(told["noise"])
    assert torch.allclose(torch.tensor(told["points"], dtype=torch.float64), mixture.sample(len(told["points"]), 5), atol=1e-4)


def test_the_trained_model_is_small_and_near_the_exact_answers() -> None:
    assert WEIGHTS.stat().st_size < 100_000
    network, made = trained(), record()
    assert sum(each.numel() for each in network.parameters()) == made["parameters"]
    found = learn_train.measured(network, 150)
    assert list(found) == list(made["distance_to_exact"])
    for sigma, each in found.items():
        assert each["median"] < 0.08, f"at sigma {sigma}"
        assert each["rms"] < 0.3 * each["rms_of_the_mean"]
        assert each["median"] == pytest.approx(made["distance_to_exact"][sigma]["median"], rel=0.35, abs=2e-3)


def test_the_trained_model_is_exact_at_the_boundary() -> None:
    x = torch.tensor([[3.0, -1.0], [0.1, 0.2]], dtype=torch.float64)
    assert torch.equal(answer(trained(), x, torch.full((2,), SIGMA_MIN, dtype=torch.float64)), x)


def test_the_weights_that_the_page_gets_are_the_files() -> None:
    layers, network = packed(), trained()
    x = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    sigma = torch.tensor([0.9], dtype=torch.float64)

    def floats(text: str) -> torch.Tensor:
        raw = base64.b64decode(text)
        return torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw), dtype=torch.float64)

    def network_of_the_page(scaled: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = torch.cat([scaled, time[:, None], time[:, None] ** 2], 1)
        for i, layer in enumerate(layers):
            h = h @ floats(layer["weight"]).reshape(layer["rows"], layer["columns"]).T + floats(layer["bias"])
            h = h if i == len(layers) - 1 else h * torch.sigmoid(h)
        return h

    assert torch.allclose(PRECONDITIONING(network_of_the_page, x, sigma), answer(network, x, sigma), atol=1e-12)


def test_an_untrained_network_begins_as_c_skip() -> None:
    x, sigma = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.7)
    c_skip = PRECONDITIONING.coefficients(sigma)[0]
    assert torch.allclose(answer(PlaneNetwork(torch.Generator().manual_seed(1)), x, sigma), c_skip[:, None] * x)


def test_a_moment_of_training_gets_nearer() -> None:
    before = learn_train.measured(PlaneNetwork(torch.Generator().manual_seed(1)).double(), 100)
    after = learn_train.measured(learn_train.train(120, 128, seed=1, quiet=True).double(), 100)
    for sigma in ("1", "5", "80"):
        assert after[sigma]["rms"] < 0.9 * before[sigma]["rms"]


def test_formulas_become_mathml() -> None:
    assert (
        formula("x_t = 2 z", block=False)
        == "<math><mrow><msub><mi>x</mi><mi>t</mi></msub><mo>=</mo><mn>2</mn><mi>z</mi></mrow></math>"
    )
    made = ElementTree.fromstring(formula("@frac{a}{@sqrt{b^2}} + @hat{x}_{t_n} @text{for all }σ", "a over root b"))
    assert made.attrib == {"display": "block", "alttext": "a over root b"}
    fraction = made.find(".//mfrac")
    assert fraction is not None
    assert [each.tag for each in fraction] == ["mrow", "mrow"]
    assert made.find(".//msub/mover") is not None
    assert [each.text for each in made.iter("mtext")] == ["for\u00a0all\u00a0"]
    assert "&lt;" in formula("a < b")
    assert ElementTree.fromstring(formula("a_1^2")).find(".//msubsup") is not None


def test_prose_sets_its_formulas() -> None:
    set_ = prose("<p>Let $x < 1$.</p>$$y | x :: y given x$$")
    assert set_.startswith("<p>Let <math><mrow><mi>x</mi><mo>&lt;</mo><mn>1</mn></mrow></math>.</p><math display=")
    assert 'alttext="y given x"' in set_


@pytest.mark.parametrize("text", ["a_{b", "a}", "a_", "@frac{a}", "@sin{x}", "@text x"])
def test_broken_formulas_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        formula(text)


class _Tags(HTMLParser):
    """Checks that what is opened is closed, and collects ids and labels."""

    EMPTY = frozenset({"input", "br", "circle", "path", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.uses: list[str] = []
        self.named: set[str] = set()
        self.inputs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "label" and "for" in found:
            self.named.add(found["for"] or "")
        if tag == "input":
            self.inputs.append(found.get("id") or "")
            if "label" in self.open:
                self.named.add(found.get("id") or "")
        self.uses += [name for key in ("aria-describedby", "aria-labelledby", "for") for name in (found.get(key) or "").split()]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_everything_is_labelled() -> None:
    page, tags = page_html(), _Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert set(tags.uses) <= set(tags.ids)
    assert set(tags.inputs) <= tags.named
    assert not re.search(r"https?://", page)
    assert "<script" not in page


def test_the_page_holds_its_data() -> None:
    found = re.search(r'<div id="learn-facts" hidden>(.*?)</div>', page_html(), re.S)
    assert found is not None
    told = json.loads(html.unescape(found[1]))
    assert told["world"] == facts()
    assert told["layers"] == packed()
    assert told["steps"] == [step.key for step in STEPS]


def test_every_formula_of_the_steps_is_sound() -> None:
    texts = [prose(text) for step in STEPS for text in (step.text, *(phase[1] for phase in step.phases))]
    assert "$" not in "".join(texts)
    formulas = [each for text in texts for each in re.findall(r"<math.*?</math>", text, re.S)]
    assert len(formulas) > 25
    for each in formulas:
        ElementTree.fromstring(each)
    assert [step.key for step in STEPS] == ["noise", "ode", "consistency", "teacher", "cd", "ct", "ict", "trained"]


def test_the_numbers_in_the_words_are_true() -> None:
    words = " ".join(" ".join(step.text + " ".join(phase[1] for phase in step.phases) for step in STEPS).split())
    stages = ict_stages(8000, S0, S1)
    assert (len(stages), stages[0][1], stages[-1][1]) == (8, 11, 1281)
    assert "eight stages, from N = 11 to 1281" in words
    assert f"{record()['parameters']:,} weights" in words
    assert f"c = {huber_constant(2):.5f}" in words
    grid = noise_levels(1281)
    share = float((grid[1:] > 10).double().mean())
    assert abs(share - 1 / 3) < 0.02
    assert "would spend a third of them on σ above 10" in words
    assert float(lognormal_interval_pmf(grid, P_MEAN, P_STD)[grid[1:] > 10].sum()) < 0.06


def test_the_quiz_has_one_right_answer_each_and_says_why() -> None:
    assert 6 <= len(QUESTIONS) <= 8
    for question in QUESTIONS:
        assert 0 <= question.right < len(question.answers)
        assert len(set(question.answers)) == len(question.answers) >= 3
        assert len(question.why) > 40
    assert len({question.right for question in QUESTIONS}) > 1
    page = quiz_html()
    assert page.count("<fieldset") == page.count("<legend>") == len(QUESTIONS)
    for number, question in enumerate(QUESTIONS):
        assert page.count(f'name="learn-q{number}"') == len(question.answers)
        assert html.escape(question.why) in page
