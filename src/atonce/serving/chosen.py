"""Which backend was chosen for a model on this kind of machine, kept in the state folder so that every start chooses alike.

Backends differ in the last bits of an image, and a choice by time may come out otherwise the next time. So the first choice
stays: for the same weights, the same versions of what computes, the same processor and the same settings. Deleting the file
``STATE/backends/KEY.json`` has it measured again.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch

from atonce.core.errors import AtonceError
from atonce.core.files import sha256_json, storage_errors, write_atomic
from atonce.core.version import VERSION
from atonce.model import ConsistencyModel
from atonce.model_files import weights_digest
from atonce.serving.private import FILE, private_folder

log = logging.getLogger("atonce.serving")


class Chosen:
    """The kept choice for one model.

    Args:
        model: The model, on its device.
        state: The state folder.
        settings: What else a choice depends on: rows, threads.
    """

    def __init__(self, model: ConsistencyModel, state: Path, **settings: Any) -> None:
        self.facts: dict[str, Any] = {
            "weights": weights_digest(model),
            "processor": _processor(model.device),
            "versions": {"atonce": VERSION, "torch": torch.__version__, "openvino": _version("openvino")},
            "settings": settings,
        }
        self.file = state / "backends" / f"{sha256_json(self.facts)[:24]}.json"

    def recall(self) -> str | None:
        """The backend that was chosen before; ``None`` where none was, or what is kept cannot be read."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            return str(kept["backend"]) if kept["facts"] == self.facts else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def keep(self, backend: str) -> str:
        """Keep a choice, unless another process has kept one meanwhile.

        Args:
            backend: Its name.

        Returns:
            The choice that holds now. Where nothing can be written, the given one, and a line in the log.
        """
        if (known := self.recall()) is not None:
            return known
        own = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        text = json.dumps({"backend": backend, "facts": self.facts}, indent=2) + "\n"

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        try:
            with storage_errors(self.file):
                private_folder(self.file.parent.parent)
                private_folder(self.file.parent)
                write_atomic(own, write, mode=FILE)
                try:
                    os.link(own, self.file)  # only the first one succeeds
                except FileExistsError:
                    if self.recall() is None:  # damaged
                        os.replace(own, self.file)
                finally:
                    own.unlink(missing_ok=True)
        except (AtonceError, OSError) as problem:
            log.warning("the choice of backend %s cannot be kept, the next start may choose another: %s", backend, problem)
            return backend
        return self.recall() or backend


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    found = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    found += [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return sha256_json(found)[:24] + " " + (found[1] if len(found) > 1 else found[0])
