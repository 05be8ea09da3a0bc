"""What runs in the process of a phase."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from gpu_jobs import jobs
from gpu_state import Limits
from gpu_tools import Notebook, device_facts

from atonce.core.errors import InputError
from atonce.training.options import pick_device


def inside(given: argparse.Namespace) -> int:
    """One phase; its results go to a file in the working folder.

    Args:
        given: The parsed command line.

    Returns:
        0.

    Raises:
        InputError: The phase is not known, or the device is not there.
    """
    notes = Notebook(given.work / f"{given.inside}.json", given.until)
    job = jobs()[given.job]
    limits = Limits(given.files, int(given.file_mib * 2**20), int(given.total_mib * 2**20))
    if given.inside == "judge":
        from gpu_judge import train_judge

        train_judge(job)
        return 0
    notes.put("device", device_facts(pick_device(given.device)))
    if given.device == "cpu":
        torch.set_num_threads(1)
    match given.inside:
        case "checks":
            from gpu_checks import run_checks

            run_checks(given.device, notes, compiled=not given.tiny, tests=not given.tiny, quick=given.tiny)
        case "speed":
            from gpu_speed import measure_speed

            measure_speed(given.device, notes, job=job, tiny=given.tiny)
        case "train":
            from gpu_train import train_job

            plan = None if given.plan is None else 60 * given.plan
            settings: dict[str, Any] = {"trial_seconds": 0.3, "evaluate_images": 16} if given.tiny else {}
            settings |= {"device": given.device, "limits": limits, "compiled": given.compiled}
            train_job(given.work, job, notes, plan_seconds=plan, **settings)
        case "evaluate":
            from gpu_judge import judge_job

            judge_job(given.work, job, notes, device=given.device, samples=64 if given.tiny else 10_000)
        case other:
            raise InputError(f"phase {other!r} is not known")
    return 0
