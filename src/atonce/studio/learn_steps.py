"""What the Learn tab says, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        key: Its name in the page.
        title: Its title.
        text: HTML with formulas, for :func:`~atonce.studio.learn_formula.prose`.
        phases: What is drawn one after the other, each as a title and such a text; none where all is drawn at once.
    """

    key: str
    title: str
    text: str
    phases: tuple[tuple[str, str], ...] = field(default=())


STEPS: tuple[Step, ...] = (
    Step(
        "noise",
        "Noise",
        """<p>The data y are points of four clusters, the circles. Noise z from a normal distribution is added; the
noise level σ says how much.</p>
$$x = y + σ z :: x equals y plus sigma times z$$
<p>Move σ: at 0.002 the small dots are data, at 80 nothing of the data can be seen. What is drawn is x,
scaled by $σ_d / @sqrt{σ^2 + σ_d^2}$ with $σ_d = 0.5$, so that noise and data fit one picture.</p>
<p>From x alone nobody can say which y it came from. A <strong>denoiser</strong> gives the mean of all
that are possible, D in the picture:</p>
$$D(x, σ) = E[y | x] :: D of x and sigma is the expectation of y given x$$
<p>At large σ this is the mean of all data, and lies where there is none. The darker a cluster, the
likelier x came from it.</p>""",
    ),
    Step(
        "ode",
        "The way back",
        """<p>There is a smooth way from noise to data, the probability-flow ODE. It goes away from the noise, that
is, towards D:</p>
$$@frac{d x}{d σ} = @frac{x − D(x, σ)}{σ} :: d x over d sigma equals x minus D, over sigma$$
<p>Through every point goes exactly one trajectory (the line). Its end at $ε = 0.002$ is the
<strong>origin</strong>. Drag the point and see where it would end; let it go by the button, or move
σ.</p>
<p class="learn-source">Karras et al. 2022, equation 1; Song et al. 2023, section 2.</p>""",
    ),
    Step(
        "consistency",
        "Consistency",
        """<p>A <strong>consistency function</strong> jumps to the origin in one call, from every point of the
trajectory:</p>
$$f(x_σ, σ) = x_ε, @text{the same for all σ of one trajectory; }f(x, ε) = x :: f of x sigma is x epsilon for all sigma$$
<p>Move σ along the trajectory: x and D change, the answer of f stays. A network is given the boundary
for free:</p>
$$f_θ(x, σ) = c_@text{skip}(σ) x + c_@text{out}(σ) F_θ(c_@text{in}(σ) x, c_@text{noise}(σ)) :: c skip x plus c out F$$
<p>with $c_@text{skip}(ε) = 1$ and $c_@text{out}(ε) = 0$. All that is left to learn is that the answer
does not change along a trajectory.</p>
<p class="learn-source">Song et al. 2023, section 3, equation 5 and appendix C.</p>""",
    ),
    Step(
        "teacher",
        "The teacher",
        """<p>A diffusion model knows D only, so it follows the ODE in n steps over noise levels
$t_1 = ε < … < t_{n+1} = 80$. Euler goes along the slope, one call a step; Heun corrects with the slope
at the other end, two calls a step:</p>
$$x_{t_i} ← x_{t_{i+1}} + (t_i − t_{i+1}) @frac{x_{t_{i+1}} − D(x_{t_{i+1}}, t_{i+1})}{t_{i+1}} :: Euler's step$$
<p>Few steps end beside the origin. In the long run the error falls like 1/n with Euler and like 1/n²
with Heun; the table is computed for your point.</p>
<p class="learn-source">The grid is that of Karras et al. 2022, ρ = 7. Here D is exact; a trained
teacher adds its own error. The usual samplers end at 0 with an Euler step, so Heun's 18 steps are 35
calls.</p>""",
    ),
    Step(
        "cd",
        "Distillation (CD)",
        """<p>Consistency distillation trains f on <strong>neighbouring points of one trajectory</strong>; a
teacher makes the second one.</p>
$$L = λ(t_n) d(f_θ(x_{t_{n+1}}, t_{n+1}), f_{θ^−}(@hat{x}_{t_n}, t_n)) :: the loss of consistency distillation$$
<p>θ⁻ is a moving average of θ that gets no gradient.</p>""",
        (
            (
                "A noisy point",
                """Take a data point and add noise: $x_{t_{n+1}} = y + t_{n+1} z$. Drag it; choose the interval n with the
slider.""",
            ),
            (
                "One step of the teacher",
                """From $t_{n+1}$ to $t_n$ with Euler or Heun: $@hat{x}_{t_n}$, nearly on the same trajectory.""",
            ),
            (
                "Two answers",
                """The student at $t_{n+1}$, the target network at $@hat{x}_{t_n}$. Were f exact, both would be the origin.""",
            ),
            (
                "The pull",
                """The gradient pulls the student's answer (1) towards the target's (2). Near ε the target is right by the
boundary, and from there the truth is handed up, interval by interval. Song et al. 2023, algorithm 2.""",
            ),
        ),
    ),
    Step(
        "ct",
        "From data alone (CT)",
        """<p>Consistency training needs no teacher: the second point has <strong>the same y and the same noise
z</strong>, and a little less of it.</p>
$$L = λ(t_n) d(f_θ(y + t_{n+1} z, t_{n+1}), f_{θ^−}(y + t_n z, t_n)) :: the loss of consistency training$$""",
        (
            (
                "A data point and noise",
                """Your point is $y + t_{n+1} z$. Many y could have led to it. One is drawn; the button draws another.""",
            ),
            (
                "The same noise, less of it",
                """$y + t_n z$ lies on the straight line to y, and as a rule on another trajectory than your point.""",
            ),
            (
                "Two answers",
                """Student and target answer. Their origins differ, so a single pair pulls in a wrong direction.""",
            ),
            (
                "On average it is right",
                """The dots are $y + t_n z$ for 120 different y that lead to the same $x_{t_{n+1}}$. Their mean is exactly
Euler's step with the exact D, the cross: as intervals shrink, CT becomes CD with a perfect teacher.
Song et al. 2023, theorem 2.""",
            ),
        ),
    ),
    Step(
        "ict",
        "Improved (iCT)",
        """<p>Improved consistency training keeps the pairs of CT and changes what surrounds them. The target is
the student itself, $θ^− = θ$ without gradient, and:</p>""",
        (
            (
                "More and more intervals",
                """$$N(k) = @text{min}(s_0 2^{⌊k / K′⌋}, s_1) + 1 :: N of k doubles from eleven to 1281$$
<p>with $s_0 = 10$ and $s_1 = 1280$: training goes through eight stages, from N = 11 to 1281. Few
intervals: fast, but biased. Many: exact, but each pair says little.</p>""",
            ),
            (
                "Where pairs lie",
                """
$$p(σ_i) ∝ E_{i+1} − E_i, E_i = @text{erf}@frac{@text{ln }σ_i + 1.1}{2@sqrt{2}} :: a discretised log-normal$$
<p>ln σ is drawn from a normal distribution with mean −1.1 and standard deviation 2: the bars. Equal
shares for all intervals, as in CT, would spend a third of them on σ above 10.</p>""",
            ),
            (
                "The weight",
                """$$λ(σ_i) = @frac{1}{σ_{i+1} − σ_i} :: lambda is one over the width of the interval$$
<p>Errors at small noise weigh more: everything above is learnt from there.</p>""",
            ),
            (
                "The distance",
                """$$d(a, b) = @sqrt{‖a − b‖^2 + c^2} − c, c = 0.00054 @sqrt{d} :: the pseudo-Huber distance$$
<p>Like the square where a and b are nearer than c, like the plain distance beyond, so that rare large
differences do not rule. Here d = 2 and c = 0.00076. Song and Dhariwal 2023.</p>""",
            ),
        ),
    ),
    Step(
        "trained",
        "A trained model",
        """<p>This network was trained by iCT on points of these four clusters, with this package. It has 8,770
weights and is evaluated in this page. Its answer (the square) stands beside the exact one (the
diamond). Drag the point near a border between two clusters: there the exact answer jumps, and a
network, being smooth, lies between them.</p>
<p>The dots are its answers for 240 starting points of pure noise at σ = 80: new samples in one call
each.</p>""",
    ),
)
"""In their order. Formulas use the papers' symbols; t and σ are the same noise level."""
