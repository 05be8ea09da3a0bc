"""The quiz of the Learn tab: questions, and why each answer is right or wrong."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Attributes:
        text: The question.
        answers: What can be chosen.
        right: Index of the right one.
        why: Why it is.
    """

    text: str
    answers: tuple[str, ...]
    right: int
    why: str


QUESTIONS: tuple[Question, ...] = (
    Question(
        "What is the same for all points of one trajectory of the ODE?",
        ("The noise level", "The denoiser's answer D(x, σ)", "The answer of the exact consistency function"),
        2,
        "f gives the end of the trajectory, and all its points share that end. D changes on the way: from the mean of all data "
        "to the point.",
    ),
    Question(
        "Why is the denoiser's answer at σ = 80 no good sample?",
        (
            "It is the mean of all data, and lies where there is none",
            "It is the start of the trajectory",
            "The denoiser knows only small noise",
        ),
        0,
        "D(x, σ) is the mean of all y that x may have come from, and at large noise that may be any of them. For images it is "
        "a grey blur.",
    ),
    Question(
        "What holds at the smallest noise level ε, whatever the network F says?",
        ("f(x, ε) = 0", "f(x, ε) = x", "f(x, ε) = F(x, ε)"),
        1,
        "There c_skip = 1 and c_out = 0. Without this boundary a constant answer would be consistent too, and useless.",
    ),
    Question(
        "Euler's method takes twice as many steps. What happens to its error at the end, once steps are small?",
        ("It stays", "It is about halved", "It is about quartered"),
        1,
        "Euler's error falls like 1/n. Heun's falls like 1/n², so there it would be quartered, at two calls a step.",
    ),
    Question(
        "Where does the second point of a pair come from in distillation (CD)?",
        ("From another data point", "From the same noise at a smaller level", "From one step of a teacher along the ODE"),
        2,
        "The teacher's step leads to the neighbouring point of nearly the same trajectory. The same noise at a "
        "smaller level is CT.",
    ),
    Question(
        "A pair of consistency training (CT) does not lie on one trajectory. Why does it work all the same?",
        (
            "Over all data points that fit, its mean is Euler's step with the exact denoiser",
            "The network moves the points onto one trajectory",
            "The moving average removes the noise from the data",
        ),
        0,
        "Given x at the larger level, the mean of y + t_n z is exactly that step. What remains is the bias of finite "
        "intervals, which shrinks as N grows.",
    ),
    Question(
        "What is the target network of iCT?",
        ("A slow moving average of the student", "The teacher", "The student itself, without gradient"),
        2,
        "iCT sets θ⁻ = θ. A lagging average biases consistency training; an average is kept only for sampling.",
    ),
    Question(
        "Why does the number of intervals grow in training instead of being large from the start?",
        (
            "Few intervals learn fast but are biased; many are exact, but each pair says little",
            "Memory grows with the intervals",
            "The teacher needs time to warm up",
        ),
        0,
        "With wide intervals the truth at ε reaches large noise in few hand-overs. Narrow ones then remove the bias. Memory "
        "does not depend on N.",
    ),
)


def quiz_html() -> str:
    """The quiz; assets/learn-quiz.js marks it, in the browser only.

    Returns:
        HTML: a fieldset with radio buttons for each question.
    """
    parts = [_question(number, each) for number, each in enumerate(QUESTIONS)]
    return (
        '<section class="learn-quiz" aria-labelledby="learn-quiz-title"><h3 id="learn-quiz-title">Do you see it?</h3>'
        f'<p class="at-note">{len(QUESTIONS)} questions. Your answers stay in this browser and are sent nowhere.</p>'
        f'<form id="learn-quiz">{"".join(parts)}<div class="learn-score"><p id="learn-score" role="status"></p>'
        '<button type="button" class="at-button" id="learn-again">Clear the answers</button></div></form></section>'
    )


def _question(number: int, question: Question) -> str:
    name = f"learn-q{number}"
    choices = "".join(
        f'<label class="learn-choice"><input type="radio" name="{name}" value="{i}" id="{name}-{i}" '
        f'aria-describedby="{name}-why">'
        f"<span>{html.escape(answer)}</span></label>"
        for i, answer in enumerate(question.answers)
    )
    return (
        f'<fieldset data-right="{question.right}"><legend>{number + 1}. {html.escape(question.text)}</legend>{choices}'
        f'<p class="learn-why" id="{name}-why" data-why="{html.escape(question.why)}"></p></fieldset>'
    )
