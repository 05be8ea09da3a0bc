"""A process that imports once, forks for each run it is asked for, and sees to it that the run is killed when it should be.

One JSON object a line on stdin: ``out``, ``images`` and further options of ``atonce.train``, and how the run dies:

- ``after``: kill -9 from outside after so many seconds;
- ``place`` and ``occurrence``: kill -9 at the n-th time that the run comes to a place (see :func:`_places`).

One JSON object a line on stdout: ``signal`` (number, 0 where it ended by itself), ``code``, ``seconds``, ``places`` (those it
came to). With ``--once JSON`` the run is carried out in this very process, and nothing is forked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tensorboard.summary.writer.record_writer  # noqa: F401 - imported before the fork
import torch
import torch._dynamo  # noqa: F401 - an optimiser imports it otherwise, in every child anew

import atonce
import atonce.model_files
import atonce.training.checkpoint
from atonce.data.sources import open_data
from atonce.networks.unet import UNetConfig
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.monitor import Monitor
from atonce.training.rundir import RunFolder

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Places:
    """Counts how often a run comes to each place, and dies at one of them."""

    def __init__(self, place: str | None, occurrence: int) -> None:
        self.place, self.occurrence, self.seen = place, occurrence, Counter()

    def at(self, name: str) -> bool:
        self.seen[name] += 1
        return name == self.place and self.seen[name] == self.occurrence

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Die before and after a call: ``name:before``, ``name:after``."""
        original = getattr(owner, attribute)

        def wrapped(*args: Any, **options: Any) -> Any:
            if self.at(f"{name}:before"):
                die()
            result = original(*args, **options)
            if self.at(f"{name}:after"):
                die()
            return result

        setattr(owner, attribute, wrapped)

    def wrap_save(self, owner: Any, name: str) -> None:
        """Die in the middle of a safetensors file: ``name:half``."""
        original = owner.save_file

        def wrapped(content: Any, path: Any, **options: Any) -> None:
            original(content, path, **options)
            if self.at(f"{name}:half"):
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        owner.save_file = wrapped


def _places(places: Places) -> None:
    """Put a place around everything that changes the disk, and around steps and evaluations."""
    original = RunFolder.append

    def append(self: RunFolder, line: dict[str, Any]) -> None:
        if places.at("log:half"):
            with open(self.log_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line)[:40])
            die()
        original(self, line)

    RunFolder.append = append  # type: ignore[method-assign]
    places.wrap(Engine, "step", "step")
    places.wrap(Monitor, "measure", "measure")
    places.wrap(RunFolder, "cut_log", "cut")
    places.wrap_save(atonce.training.checkpoint, "checkpoint")
    places.wrap_save(atonce.model_files, "model")
    rename, replace, unlink = Path.rename, Path.replace, os.replace

    def path_rename(self: Path, target: Any) -> Path:  # the two renames that put a model folder in place
        if places.at("rename:before"):
            die()
        result = rename(self, target)
        if places.at("rename:after"):
            die()
        return result

    def path_replace(self: Path, target: Any) -> Path:
        name = "state" if Path(target).name.startswith("state-") else "file"
        if places.at(f"{name}:before"):
            die()
        result = replace(self, target)
        if places.at(f"{name}:after"):
            die()
        return result

    def os_replace(source: Any, target: Any, **options: Any) -> None:
        if places.at(f"{Path(target).name.split('.')[-1]}:before"):
            die()
        unlink(source, target, **options)
        if places.at(f"{Path(target).name.split('.')[-1]}:after"):
            die()

    Path.rename, Path.replace, os.replace = path_rename, path_replace, os_replace  # type: ignore[method-assign, assignment]


def work(job: dict[str, Any]) -> None:
    """One run, in this process."""
    torch.set_num_threads(1)
    places = Places(job.pop("place", None), job.pop("occurrence", 1))
    _places(places)
    out, images, fields = job.pop("out"), job.pop("images"), job.pop("recipe", {})
    recipe = presets.ict(
        images, 16, network=NETWORK, **{"s1": 20, "dropout": 0.1, "ema": (0.9, 0.99), "ema_rampup": 0.0} | fields
    )
    atonce.train(recipe, "digits", out, **job)
    if report := os.environ.get("VICTIM_PLACES"):
        Path(report).write_text(json.dumps(places.seen))


def serve() -> None:
    # All that a run imports on its way, once: the data set, statistics, pictures.
    Monitor.of(open_data("digits"), 2).measure(lambda first, n: torch.zeros(n, 1, 8, 8))
    for line in sys.stdin:
        job = json.loads(line)
        after, begun = job.pop("after", None), time.monotonic()
        report = Path(job["out"]).with_suffix(".places")
        report.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ["VICTIM_PLACES"] = str(report)
                work(job)
                code = 0
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.stderr.flush()
            os._exit(code)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        _, status = os.waitpid(child, 0)
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        answer = {"signal": killed, "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None}
        answer["seconds"] = time.monotonic() - begun
        answer["places"] = json.loads(report.read_text()) if report.exists() else {}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        work(json.loads(sys.argv[2]))
    else:
        serve()
