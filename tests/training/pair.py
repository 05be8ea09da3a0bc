"""What each of several processes under torchrun does in test_distributed.py: runs in turn, in one process group."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import atonce
from atonce import cli
from atonce.core.errors import AtonceError
from atonce.networks.unet import UNetConfig
from atonce.training import presets

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())


def main() -> None:
    torch.set_num_threads(1)
    # Shorter than the library's, so that a hang is a failure soon.
    dist.init_process_group("gloo", timeout=timedelta(seconds=240))
    rank, answers = dist.get_rank(), []
    for job in json.loads(sys.argv[1]):
        out, stop_at, lines = job.pop("out"), job.pop("stop_at", None), []
        if "words" in job:  # the last one: the command leaves the group
            answers.append({"out": out, "status": cli.main([*job["words"], "--out", out])})
            break
        seed = job.pop("seeds", [0, 0])[rank]

        def callback(line: dict[str, Any], lines: list = lines, stop_at: int | None = stop_at) -> None:
            lines.append(line)
            if line["images"] == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)  # one process is asked, all stop

        changes = {"s1": 20} if (preset := job.pop("preset", "ict")) == "ict" else {"tangent_warmup": 200, "ema_rampup": 0.0}
        recipe = presets.PRESETS[preset](384, 15, seed, network=NETWORK, dropout=0.1, ema=(0.9, 0.99), **changes)
        try:
            run = atonce.train(recipe, "digits", out, callback=callback, **job)
            answer: dict[str, Any] = {"finished": run.finished, "images_seen": run.images_seen, "lines": len(lines)}
            answer["sample"] = float(run.model.sample(2).double().sum())
        except AtonceError as error:
            answer = {"error": str(error)}
        answers.append({"out": out, **answer})
    Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
