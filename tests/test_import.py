"""What an import costs, and who may import whom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "rich", "tyro", "matplotlib", "numpy", "scipy", "sklearn", "tensorboard")


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def imported(stderr: str) -> set[str]:
    """Top-level packages in the report of ``python -X importtime``."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines[1:]}


def test_import_loads_nothing_heavy():
    done = python("-c", f"import sys, atonce; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_report_of_imports_is_read_rightly():
    # The next test would pass on an empty report, so make sure that this reader sees what is there.
    done = python("-X", "importtime", "-c", "import json.decoder")
    assert "json" in imported(done.stderr)
    assert "torch" not in imported(done.stderr)


def test_help_does_not_import_torch():
    done = python("-X", "importtime", "-m", "atonce", "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage" in done.stdout.lower()
    loaded = imported(done.stderr)
    assert "atonce" in loaded
    assert not loaded & {"torch", "matplotlib", "scipy", "sklearn", "tensorboard"}


def test_core_and_its_light_modules_do_not_import_torch():
    done = python(
        "-c", "import sys, atonce.core.errors, atonce.core.files, atonce.core.progress; print('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_types_are_announced(repository):
    assert (repository / "src" / "atonce" / "py.typed").exists()


def lint_imports(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"
    return python("-c", code, cwd=folder, COLUMNS="200", **environment)


def test_the_rooms_keep_their_layers(repository):
    pytest.importorskip("importlinter")
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout + done.stderr


SMALL_HOUSE = {
    "__init__.py": "def load():\n    from atonce import model",
    "__main__.py": "from atonce.cli import main",
    "cli.py": "import atonce\nfrom atonce.training import loop",
    "model.py": "from atonce import preconditioning\nfrom atonce.sampling import restart\nfrom atonce.networks import unet",
    "preconditioning.py": "",
    "noise/karras.py": "from atonce.core import errors",
    "data/digits.py": "",
    "networks/unet.py": "",
    "sampling/restart.py": "from atonce.noise import karras",
    "editing/inpaint.py": "from atonce import model",
    "objectives/discrete.py": "from atonce import model",
    "training/loop.py": "from atonce.objectives import discrete",
    "core/errors.py": "",
}


@pytest.mark.parametrize(
    ("file", "text", "breach"),
    [
        ("core/more.py", "", None),
        ("core/more.py", "from atonce.noise import karras", "atonce.core is not allowed to import atonce.noise"),
        ("noise/more.py", "import atonce.data", "atonce.noise is not allowed to import atonce.data"),
        (
            "sampling/more.py",
            "def f():\n    import atonce.objectives",
            "atonce.sampling is not allowed to import atonce.objectives",
        ),
        ("editing/more.py", "import atonce.objectives", "atonce.editing is not allowed to import atonce.objectives"),
        ("sampling/more.py", "import atonce", "atonce.sampling is not allowed to import atonce.model"),
        ("preconditioning.py", "import atonce.model", "atonce.preconditioning is not allowed to import atonce.model"),
        ("attic/more.py", "", "atonce.attic"),
    ],
)
def test_a_breach_of_the_layers_is_seen(repository, tmp_path, file, text, breach):
    """The contracts themselves, on a small house built for the purpose: it stands, and one wrong import is named."""
    pytest.importorskip("importlinter")
    (tmp_path / "pyproject.toml").write_text((repository / "pyproject.toml").read_text())
    for name, content in {**SMALL_HOUSE, file: text}.items():
        path = tmp_path / "atonce" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(content + "\n")
    done = lint_imports(tmp_path, PYTHONPATH=str(tmp_path))
    if breach is None:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode != 0
        assert breach in done.stdout
