"""Use a GPU that is lent for a limited time: check, measure, train, and bring everything back in a few files.

    python benchmarks/gpu.py --minutes 9.5 --job fashion --out out                  the first leg
    python benchmarks/gpu.py --minutes 9.5 --job fashion --out out --state back     further legs; back/ holds what came back
    python benchmarks/gpu.py --unpack back --to runs/fashion                        at home: a run folder and a model

Needs torch 2.11 or newer, numpy, pillow, safetensors, scipy, scikit-learn and matplotlib, and no installation: it runs from a
checkout. This process never touches the GPU. It keeps the clock, starts each phase as a process of its own, copies the state to
the output now and then, and writes the record whatever happens. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))
sys.path.insert(0, str(HERE))

PHASES = ("checks", "speed", "train")
SHARE = {"checks": 0.2, "speed": 0.18}  # of the minutes, at most
GRACE = 10.0  # seconds a phase may run over before it is ended
SAVING = 30.0  # the same for training, which saves then
SAFETY = 120.0  # seconds between two copies of the state to the output


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and work.

    Args:
        words: The command line.

    Returns:
        0, or 1 where a check failed or training broke off, or 2 for bad input.
    """
    from atonce.core.errors import AtonceError

    given = _parse(words)
    try:
        if given.inside:
            from gpu_inside import inside

            return inside(given)
        if given.unpack:
            return _unpack(given.unpack, given.to)
        return Leg(given).run()
    except AtonceError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2


class Leg:
    """One use of the GPU.

    Args:
        given: The parsed command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        from gpu_jobs import jobs
        from gpu_state import Limits

        self.given, self.job = given, jobs()[given.job]
        self.begun = time.time()
        # Writing the last files, and leaving, takes a little itself.
        self.end = self.begun + 60 * given.minutes - max(4.0, 0.6 * given.minutes)
        self.limits = Limits(given.files, int(given.file_mib * 2**20), int(given.total_mib * 2**20))
        self.out: Path = given.out
        self.phases = [name for name in PHASES if name in given.phases]
        self.record: dict[str, Any] = {}
        self.notes: list[str] = []
        self.child: subprocess.Popen[bytes] | None = None
        self.judge: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self.work: Path = given.work or Path(tempfile.mkdtemp(prefix="atonce-gpu-"))

    def run(self) -> int:
        """All phases; the record is written after each.

        Returns:
            0, or 1 where a check failed or training broke off.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._prepare()
            for name in self.phases:
                if not self.stopped:
                    getattr(self, f"_{name}")()
                    self._write_record()
            self._write_record()
        finally:
            for process in (self.child, self.judge):
                if process is not None and process.poll() is None:
                    process.kill()
            shutil.rmtree(self.work, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        from gpu_report import table

        print(table(self.record))
        return 1 if self.record["failed"] or self.stopped else 0

    # ---- phases

    def _prepare(self) -> None:
        from gpu_report import start_record
        from gpu_state import WORDS, unpack_job

        from atonce.core.errors import InputError

        if self.given.minutes <= 0:
            raise InputError(f"--minutes is {self.given.minutes:g}, must be more than 0")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file: give a folder")
        self.record = start_record(self.given, self.job)
        if "train" in self.phases:
            if self.limits.state_bytes <= 0:
                raise InputError("there is no room for a state: allow at least 4 files and 4 MiB in all")
            self.job.check()  # says what is missing before anything is done
            if self.given.state:
                job, level = unpack_job(self.given.state, self.work)
                if job.get("job") != self.job.name:
                    raise InputError(
                        f"{self.given.state} holds the state of job {job.get('job')!r}, asked for is {self.job.name!r}"
                    )
                self.record["continued from"] = {"level": level, "means": WORDS[level], "legs before": len(job["legs"])}
            if not list((self.work / "cache").glob("classifiers/*")):
                self.judge = self._start("judge", self.end)
        self.out.mkdir(parents=True, exist_ok=True)

    def _checks(self) -> None:
        self._phase("checks", self._share("checks"))

    def _speed(self) -> None:
        self._phase("speed", self._share("speed"))

    def _train(self) -> None:
        left = self.end - time.time()
        # Afterwards: copying the state (it is small), a grid, ten thousand samples and their distances.
        until = self.end - min(75.0, max(2.0, 0.2 * left))
        more = ["--compiled"] if self._compiles(until - time.time()) else []
        result = self._phase("train", until, more, grace=SAVING, safety=True)
        self.record["training"] = {"compiled": bool(more), "finished": result.get("results", {}).get("finished")}
        self._bring_back()
        if (self.work / "latest" / "config.json").exists() and not self.stopped:
            if self.end - time.time() > 8:
                self._phase("evaluate", self.end - 4, grace=2.0)
            else:
                self.notes.append("samples were not measured: no time left")
        self._pictures()

    def _share(self, name: str) -> float:
        last, most = name == self.phases[-1], self.end - GRACE
        return most if last else min(most, time.time() + SHARE[name] * 60 * self.given.minutes)

    def _compiles(self, seconds: float) -> bool:
        """Whether training is compiled: as asked, else where this leg's measurement says that it pays."""
        from gpu_jobs import compile_pays

        if self.given.compile != "auto":
            return bool(self.given.compile == "on")
        speed = self.record["phases"].get("speed", {}).get("results", {}).get("compiling", {})
        broken = self.record["phases"].get("checks", {}).get("results", {}).get("compiled step", {}).get("result") == "fail"
        eager, compiled, cost = (speed.get(k) for k in ("eager, images/s", "compiled, images/s", "seconds to compile"))
        if broken or not (eager and compiled and cost):
            return False
        return compile_pays(float(eager), float(compiled), float(cost), seconds)

    # ---- processes

    def _phase(
        self, name: str, until: float, more: Sequence[str] = (), *, grace: float = GRACE, safety: bool = False
    ) -> dict[str, Any]:
        """Run a phase in a process of its own and take over what it wrote, also where it is cut short or breaks."""
        print(f"gpu: {name}, {until - time.time():.0f} s", file=sys.stderr, flush=True)
        start = time.time()
        self.child = self._start(name, until, more)
        copied, asked = time.time(), False
        while self.child.poll() is None:
            time.sleep(0.1)
            now = time.time()
            if safety and now - copied > SAFETY and now < until - 10:
                self._bring_back(quiet=True)
                copied = time.time()
            if (self.stopped or now > until + grace) and not asked:
                self.child.terminate()
                asked, until = True, now
            elif asked and now > until + grace:
                self.child.kill()
        result: dict[str, Any] = {"seconds": round(time.time() - start, 1)}
        with contextlib.suppress(OSError, ValueError):
            result |= json.loads((self.work / f"{name}.json").read_text(encoding="utf-8"))
        if asked and name != "train":
            result["cut short"] = "stopped" if self.stopped else "its time was over; what it had found by then stands"
        elif self.child.returncode:
            result["broke off"] = f"exit code {self.child.returncode}" + (", ended at its time limit" if asked else "")
        self.record["phases"][name] = result
        return result

    def _start(self, name: str, until: float, more: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(HERE / "gpu.py"), "--inside", name, "--work", str(self.work), "--until", repr(until)]
        words += ["--minutes", str(self.given.minutes), "--job", self.job.name, "--device", self.given.device]
        words += ["--files", str(self.given.files), "--file-mib", str(self.given.file_mib)]
        words += ["--total-mib", str(self.given.total_mib), *more]
        words += ["--plan", str(self.given.plan)] if self.given.plan else []
        words += ["--tiny"] if self.given.tiny else []
        # Read by the libraries when they are loaded; sums on the device repeat only with a fixed workspace.
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
        environment = {**environment, **os.environ, "ATONCE_CACHE": str(self.work / "cache")}
        if name == "judge":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, stdout=sys.stderr, env=environment)

    def _stop(self, number: int, frame: Any) -> None:
        """SIGTERM or Ctrl-C: the phase at hand is asked to stop, and what there is is brought back."""
        self.stopped = True
        self.notes.append(f"stopped by signal {number}")

    # ---- what is left behind

    def _bring_back(self, quiet: bool = False) -> None:
        from gpu_state import bring_back
        from safetensors import SafetensorError

        from atonce.core.errors import AtonceError

        if not (self.work / "job.json").exists():
            return
        try:
            self.record["state"] = bring_back(self.work, self.out, self.limits, self.notes.append)
        except (AtonceError, OSError, SafetensorError) as error:
            # While training goes on, files can be replaced under the copy; the next copy is whole.
            if not quiet:
                self.record["state"] = {"problem": str(error)}

    def _pictures(self) -> None:
        from gpu_judge import curves

        if (self.work / "samples.png").exists():
            shutil.copyfile(self.work / "samples.png", self.out / "samples.png")
        results = self.record["phases"].get("evaluate", {}).get("results", {})
        try:
            curves(self.work, self.out / "curves.png", {k: v for k, v in results.items() if k != "grid"})
        except Exception as error:  # a picture must not cost the record
            self.notes.append(f"no curves: {type(error).__name__}: {error}")

    def _write_record(self) -> None:
        from gpu_report import finish_record

        self.record["notes"] = self.notes
        self.record["seconds"] = round(time.time() - self.begun, 1)
        finish_record(self.record, self.work, self.out, self.limits, self.phases)


def _unpack(folder: Path, to: Path | None) -> int:
    from gpu_state import WEIGHTS, WORDS, unpack_job, weights_folder

    from atonce.core.errors import InputError

    if to is None:
        raise InputError("--unpack needs --to FOLDER")
    if to.exists() and any(to.iterdir()):
        raise InputError(f"{to} is not empty: give a new folder, nothing was changed")
    if not list(folder.glob("state-*.bin")) and (folder / WEIGHTS).exists():
        weights_folder(folder / WEIGHTS, to)
        print(f"{to} is a model folder: atonce.load({str(to)!r})")
        return 0
    job, level = unpack_job(folder, to)
    print(f"job {job['job']}, {len(job['legs'])} legs; {WORDS[level]}")
    for name, what in (
        ("latest", "the model as it stands"),
        ("run", "the run folder"),
        ("models", "models of finished stages"),
    ):
        if (to / name).is_dir():
            print(f"{to / name}: {what}")
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    from gpu_jobs import jobs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, hidden = parser.add_argument, argparse.SUPPRESS
    add("--minutes", type=float, default=9.5, help="time for everything; the command ends before it is over")
    add("--job", choices=list(jobs()), default="fashion", help="what is trained")
    add("--out", type=Path, default=Path("runs/gpu"), help="where everything that is brought back is written")
    add("--state", type=Path, help="a folder with the files of an earlier leg, to continue from")
    add("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    add("--plan", type=float, help="minutes of training of the whole job over all legs; default: each leg plans for itself")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="auto: where measured in this leg to pay")
    add("--files", type=int, default=8, help="files that may be brought back")
    add("--file-mib", type=float, default=16, help="size of each")
    add("--total-mib", type=float, default=128, help="size of all together")
    add("--commit", help="commit of the checkout, where it travels without its history")
    add("--unpack", type=Path, help="do nothing but unpack the files of a leg, at home")
    add("--to", type=Path, help="where to")
    add("--device", choices=("cuda", "cpu"), default="cuda", help=hidden)
    add("--tiny", action="store_true", help=hidden)
    for name, kind in (("--inside", str), ("--work", Path), ("--until", float)):
        add(name, type=kind, help=hidden)
    add("--compiled", action="store_true", help=hidden)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
