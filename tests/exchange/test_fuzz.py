"""2,100 damaged and hostile files in one process with little memory: each gives one clear line, and none runs anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = 2100
# Whatever is wrong with these can be seen; of the others some only change the value of a weight, or a name that is not used.
ALWAYS_REFUSED = ("oversized", "traversing", "bomb", "truncated")


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_damaged_and_hostile_files(tmp_path: Path) -> None:
    program = Path(__file__).with_name("fuzz_foreign.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, str(program), str(CASES), "7", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=850,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == CASES
    for kind in ALWAYS_REFUSED:
        assert counts.get(f"{kind}: opened", 0) == 0, counts
        assert counts[f"{kind}: refused"] > 50, counts
    assert counts["wrong_architecture: refused"] > 100, counts
    assert sum(n for kind, n in counts.items() if "refused" in kind) > CASES * 0.8, counts


def test_the_watch_sees_what_is_run(tmp_path: Path) -> None:
    """The hook that the other test relies on ends the process at a command, at a write, and at Python's own unpickling."""
    program = Path(__file__).with_name("fuzz_foreign.py")
    for deed in ("os.system('true')", "open('x', 'w')", "__import__('pickle').loads(b'cos\\nsystem\\n.')"):
        code = f"import runpy, sys; m = runpy.run_path({str(program)!r}); sys.addaudithook(m['watch']); "
        code += f"m['watch'].__globals__['watching'] = True; {deed}"
        done = subprocess.run(
            [sys.executable, "-c", "import os; " + code], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 3, (deed, done.stderr[-500:])
