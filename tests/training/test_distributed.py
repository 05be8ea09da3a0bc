"""Several processes train the same run: same global indices, one writer, and a resume on another number of processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atonce.model import ConsistencyModel
from atonce.training import presets
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.rundir import RunFolder

# A batch that two processes cannot share evenly, and one that they can.
COMMAND = ["train", "digits", "--images", "64", "--batch", "16", "--set", "curriculum=fixed", "s1=20", "--quiet", "--json"]
OPTIONS = {"precision": "fp32", "quiet": True, "log_every": 60, "evaluate_every": 120, "evaluate_images": 32}


def torchrun(*words: str, processes: int = 2) -> subprocess.CompletedProcess:
    """A launch that ends in any case: the launcher and its processes are one group, killed together."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        [*launcher, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the processes hang")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def recipe(tools):
    return presets.ict(384, 15, 0, network=tools.NETWORK, s1=20, dropout=0.1, ema=(0.9, 0.99))


def continuous(tools):
    return presets.sct(384, 15, 0, network=tools.NETWORK, tangent_warmup=200, dropout=0.1, ema=(0.9, 0.99), ema_rampup=0.0)


def close(one: Path, other: Path, ignored: tuple[str, ...] = ()) -> None:
    """Checkpoints and logs agree but for the order of summation."""
    a, b = (newest_checkpoint(folder / "checkpoints") for folder in (one, other))
    assert a.images_seen == b.images_seen
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        torch.testing.assert_close(value, b.tensors[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    mine, theirs = (RunFolder(folder).read_log() for folder in (one, other))
    assert [line.keys() for line in mine] == [line.keys() for line in theirs]
    for x, y in zip(mine, theirs, strict=True):
        for key in x.keys() - {"seconds", "rate", *ignored}:
            if key == "count_by_sigma" or not isinstance(x[key], (float, list)):
                assert x[key] == y[key], key
                continue
            values, wanted = (value if isinstance(value, list) else [value] for value in (x[key], y[key]))
            assert [v is None for v in values] == [v is None for v in wanted], key
            pairs = [(v, w) for v, w in zip(values, wanted, strict=True) if v is not None]
            assert [v for v, _ in pairs] == pytest.approx([w for _, w in pairs], rel=1e-3), key


@pytest.fixture(scope="module")
def alone(tools, tmp_path_factory):
    """The run of one process, and a copy that was stopped in the middle, between two log lines."""
    folder = tmp_path_factory.mktemp("alone")
    run = tools.train(folder / "whole", recipe(tools), **OPTIONS)
    assert run.finished
    assert tools.train(folder / "tangents", continuous(tools), **OPTIONS).finished

    from atonce.training.engine import Engine

    step = Engine.step

    def stop(self):
        step(self)
        if self.images_seen == 150:
            os.kill(os.getpid(), signal.SIGTERM)

    Engine.step = stop
    try:
        assert not tools.train(folder / "half", recipe(tools), **OPTIONS).finished
    finally:
        Engine.step = step
    return folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """All that two processes have to do, in one launch."""
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(alone / "half", folder / "resumed")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "mine.txt").write_text("mine")
    jobs = [
        {"out": str(folder / "whole")},
        {"out": str(folder / "passes"), "microbatch": 3},
        {"out": str(folder / "stopped"), "stop_at": 180},
        {"out": str(folder / "resumed")},
        {"out": str(folder / "foreign")},
        {"out": str(folder / "seeds"), "seeds": [0, 1]},
        {"out": str(folder / "tangents"), "preset": "sct"},
    ]
    jobs = [*(job | OPTIONS for job in jobs), {"out": str(folder / "command"), "words": COMMAND}]
    done = torchrun(str(Path(__file__).with_name("pair.py")), json.dumps(jobs), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    answers = {}
    for rank in (0, 1):
        for answer in json.loads((folder / f"{rank}.json").read_text()):
            answers[Path(answer["out"]).name, rank] = answer
    answers["printed"] = done.stdout
    return folder, answers


@pytest.mark.timeout(900)
def test_two_processes_learn_what_one_learns(together, alone):
    folder, answers = together
    close(folder / "whole", alone / "whole")
    for rank in (0, 1):
        assert answers["whole", rank]["finished"]
        assert answers["whole", rank]["images_seen"] == 375
    assert answers["whole", 0]["sample"] == answers["whole", 1]["sample"]  # both hold the model


@pytest.mark.timeout(900)
def test_two_processes_learn_the_same_from_tangents(together, alone):
    """Continuous time: the gradients of the network and of the learnt weight are both summed over the processes."""
    folder, answers = together
    close(folder / "tangents", alone / "tangents")
    assert answers["tangents", 0]["finished"]
    tensors = newest_checkpoint(folder / "tangents" / "checkpoints").tensors
    assert float(tensors["head/weight"].abs().max()) > 1e-4
    assert float(tensors["optimizer/1/exp_avg_sq"].abs().max()) > 0


@pytest.mark.timeout(900)
def test_passes_and_processes_together(together, alone):
    folder, answers = together
    assert answers["whole", 0]["images_seen"] == newest_checkpoint(folder / "passes" / "checkpoints").images_seen
    # The gradients by noise level are those of as many images as fit in a pass.
    close(folder / "passes", alone / "whole", ignored=("grad_norm_by_sigma",))


@pytest.mark.timeout(900)
def test_only_process_0_writes_and_calls_back(together, alone):
    folder, answers = together
    assert answers["whole", 0]["lines"] == len(RunFolder(folder / "whole").read_log()) > 0
    assert answers["whole", 1]["lines"] == 0
    names = sorted(
        str(path.relative_to(folder / "whole")) for path in (folder / "whole").rglob("*") if "tfevents" not in path.name
    )
    ours = sorted(
        str(path.relative_to(alone / "whole")) for path in (alone / "whole").rglob("*") if "tfevents" not in path.name
    )
    assert [name for name in names if "state-" not in name] == [name for name in ours if "state-" not in name]
    assert len(list((folder / "whole" / "tensorboard").iterdir())) == 1


@pytest.mark.timeout(900)
def test_one_stops_all_stop_and_one_process_can_go_on(tools, together, alone, tmp_path):
    folder, answers = together
    for rank in (0, 1):
        assert not answers["stopped", rank]["finished"]
        assert answers["stopped", rank]["images_seen"] == 180
    shutil.copytree(folder / "stopped", tmp_path / "run")
    assert tools.train(tmp_path / "run", recipe(tools), **OPTIONS).finished
    close(tmp_path / "run", alone / "whole")


@pytest.mark.timeout(900)
def test_two_processes_can_go_on_for_one(together, alone):
    """Also the counts of the unfinished log interval, which one process had kept alone."""
    folder, answers = together
    assert answers["resumed", 0]["finished"]
    assert answers["resumed", 1]["finished"]
    close(folder / "resumed", alone / "whole")


@pytest.mark.timeout(900)
def test_a_refusal_reaches_all(together):
    folder, answers = together
    assert "is not a training run" in answers["foreign", 0]["error"]
    assert "process 0 cannot use the run folder" in answers["foreign", 1]["error"]
    assert [path.name for path in (folder / "foreign").iterdir()] == ["mine.txt"]
    for rank in (0, 1):
        assert "different recipes or data" in answers["seeds", rank]["error"]
    assert not (folder / "seeds").exists()


@pytest.mark.timeout(900)
def test_the_command_prints_once(together):
    folder, answers = together
    assert answers["command", 0]["status"] == answers["command", 1]["status"] == 0
    assert json.loads(answers["printed"]) == {"folder": str(folder / "command"), "images_seen": 64, "finished": True}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_module_under_torchrun(tmp_path):
    done = torchrun("-m", "atonce", *COMMAND, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "run"), "images_seen": 64, "finished": True}
    assert ConsistencyModel.from_pretrained(tmp_path / "run" / "model").sample(1).shape == (1, 1, 8, 8)
