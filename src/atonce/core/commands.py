"""A function as a verb of the command line: arguments by tyro; complaints and warnings as one line each."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def parse(program: str, function: Callable[..., int], words: Sequence[str]) -> Callable[[], int]:
    """Read the arguments of a function from words.

    Args:
        program: What stands before the words, for messages.
        function: Its annotations and docstring say what it takes.
        words: What the user typed.

    Returns:
        What is left to do: the call of the function, or, where help was asked for or the words do not fit, something that gives
        the exit status. Complaints are one line on stderr.
    """
    import tyro

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return tyro.cli(_deferred(function), args=list(words), prog=program)
        except SystemExit as stop:
            if stop.code in (0, None):
                return lambda: 0
    return functools.partial(_refuse, program, said.getvalue())


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings as one line each on stderr, without the place in the code; those for programmers not at all."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            print(f"atonce: warning: {one_line(message)}", file=sys.stderr)  # noqa: T201 - of the command line

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same signature, but the work waits until parsing is over (its errors are not tyro's)."""

    @functools.wraps(function)
    def later(*args: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **options)

    return later


def _refuse(program: str, said: str) -> int:
    """Print the boxed complaint of tyro as one line."""
    lines = [line.strip("│╭╮╰╯─|+ ") for line in said.splitlines()]  # boxes are of plain characters where the terminal is
    help_words = f"{program} --help"
    body = [line for line in lines[1:] if line.strip("-") and line != help_words and "full helptext" not in line]
    text = one_line(" ".join(body)) or "the arguments cannot be read"
    print(f"{program}: {text} (see {help_words})", file=sys.stderr)  # noqa: T201 - of the command line
    return 2
