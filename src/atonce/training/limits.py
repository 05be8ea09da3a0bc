"""What the fields of a recipe may be: ranges of numbers, words beside them, and choices that go together."""

from __future__ import annotations

# Choices that the pairs of continuous time leave.
WANTED: dict[str, dict[str, tuple[str, ...]]] = {
    "tangent": {
        "preconditioning": ("trigflow",),
        "path": ("same-noise", "euler"),
        "target": ("student",),
        "weight": ("adaptive", "one"),
    },
    "groups": {"preconditioning": ("trigflow",), "path": ("same-noise",), "target": ("student",), "weight": ("one",)},
    "mean-flow": {"preconditioning": ("flow", "trigflow"), "path": ("same-noise",), "target": ("student",), "weight": ("one",)},
}

CHOICES = (
    *("preconditioning", "clock", "pairs", "path", "target", "distance", "weight", "curriculum", "optimizer"),
    *("tangent_norm", "derivative", "direction", "imm_a"),
)

WORDS = {"sigma_data": ("measured",), "mu": ("ct-code", "ct-paper")}

RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("images", 1, 1 << 50, "at least 1"),
    ("batch", 1, 1 << 24, "from 1 to 16777216"),
    ("seed", -(1 << 62), 1 << 62, "from -2**62 to 2**62"),
    ("label_dropout", 0, 1, "from 0 to 1"),
    ("sigma_data", 1e-6, 1e6, "from 1e-6 to 1e6, or 'measured'"),
    ("sigma_min", 1e-6, 1e3, "from 1e-6 to 1e3"),
    ("sigma_max", 1e-5, 1e6, "from 1e-5 to 1e6"),
    ("rho", 1, 100, "from 1 to 100"),
    ("s0", 2, 1 << 20, "from 2 to 1048576"),
    ("s1", 2, 1 << 20, "from 2 to 1048576"),
    ("P_mean", -20, 20, "from -20 to 20"),
    ("P_std", 1e-3, 20, "from 0.001 to 20"),
    ("huber_c", 0, 1e6, "at least 0, or None for 0.00054 sqrt(dimension)"),
    ("mu", 0, 0.9999999, "from 0 to below 1, 'ct-code' or 'ct-paper'"),
    ("mu0", 1e-6, 0.9999999, "above 0 and below 1"),
    ("ect_q", 1.000001, 1e6, "above 1"),
    ("ect_k", 0, 1e6, "at least 0"),
    ("ect_b", 0, 1e6, "at least 0"),
    ("ect_stages", 1, 64, "from 1 to 64"),
    ("tangent_warmup", 0, 1 << 50, "at least 0"),
    ("distinct", 0, 1, "from 0 to 1"),
    ("r_mean", -20, 20, "from -20 to 20, or None for that of t"),
    ("r_std", 1e-3, 20, "from 0.001 to 20"),
    ("error_power", 0, 2, "from 0 to 2"),
    ("error_c", 1e-12, 1e6, "above 0"),
    ("group", 2, 1 << 16, "from 2 to 65536"),
    ("imm_k", 1, 30, "from 1 to 30"),
    ("imm_b", -20, 20, "from -20 to 20"),
    ("teacher_steps", 2, 4096, "from 2 to 4096"),
    ("dropout", 0, 0.99, "from 0 to 0.99"),
    ("augment", 0, 1, "from 0 to 1"),
    ("lr", 1e-12, 10, "above 0 and at most 10"),
    ("beta1", 0, 0.9999999, "from 0 to below 1"),
    ("beta2", 0, 0.9999999, "from 0 to below 1"),
    ("lr_rampup", 0, 1 << 50, "at least 0"),
    ("lr_cooldown", 0, 1, "from 0 to 1"),
    ("ema_rampup", 0, 1, "from 0 to 1"),
)
