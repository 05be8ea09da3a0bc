"""Where log lines go beside log.jsonl: TensorBoard events, where tensorboard is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Events:
    """TensorBoard scalars over the image clock. Without the package this does nothing.

    Args:
        folder: Where event files go.
        images_seen: Clock at which this part of the run starts; later events of an interrupted part are hidden.
    """

    def __init__(self, folder: Path, images_seen: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=images_seen or None)  # type: ignore[no-untyped-call]

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of one log line; lists become one scalar for each noise bin."""
        if self._writer is None:
            return
        step = line["images"]
        for name, value in line.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("images", "seconds"):
                self._writer.add_scalar(name, value, step)
            elif name.endswith("_by_sigma"):
                for i, v in enumerate(value):
                    if v is not None:
                        self._writer.add_scalar(f"{name}/{i}", v, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
