"""A reader that goes away (`atonce ... | head -1`) is no error worth a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from atonce import cli
import atonce.verbs.gallery as verb
lines = int(sys.argv[1])

def gallery() -> int:
    for number in range(lines):
        print(number, "x" * 1000)
    return 0

verb.gallery = gallery
sys.exit(cli.main(["gallery"]))
"""


@pytest.mark.parametrize("lines", [1, 2000], ids=["at the end", "in the middle"])
def test_a_reader_that_goes_away_is_no_traceback(lines: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(lines)], stdout=writing, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_other_broken_pipes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from atonce import cli

    def broken(arguments: object) -> int:
        raise BrokenPipeError("of a socket")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(BrokenPipeError, match="of a socket"):
        cli.main([])
