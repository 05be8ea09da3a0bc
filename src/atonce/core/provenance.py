"""Where a number comes from: the command that ran, the commit of the package, the versions of what computed it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that runs, without paths of the machine.

    The program is given by its name; absolute paths among the arguments become relative to the working folder where
    they lie below it, and their last part elsewhere.

    Args:
        arguments: The words of the command; ``sys.argv`` by default.

    Returns:
        One line, quoted for a shell.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words or not words[0] or words[0] == "-c":
        return "python"
    program = Path(words[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else shlex.quote(program.name)
    return " ".join([name, *(shlex.quote(_without_machine(word)) for word in words[1:])])


def _without_machine(word: str) -> str:
    head, equals, tail = word.rpartition("=")
    path = Path(tail).expanduser() if tail.startswith("~") else Path(tail)
    if not path.is_absolute():
        return word
    here = Path.cwd()
    shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    return f"{head}{equals}{shown or '/'}"


def commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that the package is imported from.

    Args:
        package: Folder of the package; atonce's own by default.

    Returns:
        The full hash, with ``+changes`` where files of the package differ from it; None where the package is not a
        tracked part of a git checkout (an installed copy, even one inside somebody's repository) or git is absent.
    """
    folder = package if package is not None else Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if git("status", "--porcelain", "--", ".") else "")


def versions() -> dict[str, str]:
    """Versions of what computes the numbers; packages that are not installed as such are given as ``"source"``."""
    out = {"python": platform.python_version()}
    for package in ("atonce", "torch", "numpy"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = "source"
    return out
