"""The service reads no pickle, ever: not in its own code, not in a model folder, not while it answers."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atonce
from atonce.core.errors import InputError, ModelFileError
from atonce.serving.sources import open_source

READERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas", "runpy", "imp"}
CALLS = {
    "torch.load",
    "torch.package",
    "numpy.load",
    "np.load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "PickleType",
    "sa.PickleType",
}


def breaches(tree: ast.AST) -> list[str]:
    """Imports and calls that read pickles or run what was read."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in READERS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in READERS else []
            found += [f"{node.module}.{name.name}" for name in node.names if f"{node.module}.{name.name}" in CALLS]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            plain = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("allow_pickle") == "False"
            found += [] if plain else [ast.unparse(node.func)]
    return found


def test_the_search_finds_what_it_is_to_find() -> None:
    for line in (
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('x')",
        "import numpy as np; np.load('x')",
    ):
        assert breaches(ast.parse(line)), line
    assert breaches(ast.parse("np.load('x', allow_pickle=True)"))
    assert not breaches(ast.parse("np.load('x', allow_pickle=False)\nre.compile('x')\njson.load(f)"))


def test_no_file_of_the_service_reads_pickles(repository: Path) -> None:
    files = [*(repository / "src/atonce/serving").rglob("*.py"), repository / "src/atonce/model_files.py"]
    assert len(files) > 10
    assert {str(path): found for path in files if (found := breaches(ast.parse(path.read_text(encoding="utf-8"))))} == {}


class Trap:
    """What a hostile file holds: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model folder of ours."""
    atonce.load("digits").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_pickle_in_the_place_of_a_file_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    if name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        (folder / "pytorch_model.bin").write_bytes(trap)
        (folder / name).write_text(json.dumps({"weight_map": {"w": "pytorch_model.bin"}}))
    else:
        (folder / name).write_bytes(trap)
    with pytest.raises(ModelFileError) as caught:
        atonce.load(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "checkpoint.pkl", "model.ckpt"])
def test_pickled_weights_alone_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ModelFileError):
        atonce.load(str(folder))
    with pytest.raises(ModelFileError):
        atonce.load(str(folder / name))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_beside_sound_weights_is_never_opened(folder: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "scaler.pkl", "custom.py"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        (folder / name).chmod(0)
    assert atonce.load(str(folder)).sample(1).shape[0] == 1
    assert not (tmp_path / "sprung").exists()
    shutil.rmtree(folder)


WATCHED = """
import asyncio, sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)) if event.startswith("pickle.") else None)
import httpx
from atonce.serving.app import create_app
from atonce.serving.settings import ServeSettings

async def run():
    settings = ServeSettings(models=("digits",), state=sys.argv[1], backend="eager", threads=1, max_batch=4, job_workers=0)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        seen.clear()  # what libraries did while they were imported
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=300) as http:
            made = await http.post("/v1/generate", json={"n": 2, "format": "png"})
            assert made.status_code == 200, made.text
            listed = await http.get("/v1/models")
            assert listed.status_code == 200, listed.text

asyncio.run(run())
print(seen)
"""


def test_nothing_is_unpickled_while_it_answers(tmp_path: Path) -> None:
    """Python itself tells of every name that an unpickler looks up."""
    done = subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pt", "unet/diffusion_pytorch_model.bin"])
def test_checkpoints_that_are_pickles_are_not_served(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"ema": 1}))
    place = str(file if name.startswith("weights") else tmp_path / "model")
    with pytest.raises(InputError, match=r"holds a pickle, which is never served: convert it once, atonce\.load"):
        open_source(place, "cpu")
