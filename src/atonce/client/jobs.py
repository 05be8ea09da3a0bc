"""A job on a server: how far it is, and the file that comes of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from atonce.client.errors import ClientError, JobFailedError, NoConnectionError, TimedOutError
from atonce.client.images import Images
from atonce.core.errors import InputError
from atonce.core.files import storage_errors
from atonce.core.progress import Progress

if TYPE_CHECKING:
    from atonce.client.transport import Transport

_ENDED = ("done", "failed", "cancelled", "expired")


class Job:
    """A large request that the server works on, whether anybody waits for it or not.

    Attributes:
        info: What the server said last.

    Args:
        transport: The server.
        info: What it said.
    """

    def __init__(self, transport: Transport, info: dict[str, Any]) -> None:
        self._transport = transport
        self.info = info

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.status}, {self.done} of {self.total} images>"

    @property
    def id(self) -> str:
        """Its name, by which :meth:`atonce.client.client.Client.job` finds it again."""
        return str(self.info["id"])

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``cancelling``, ``cancelled``, ``done``, ``failed`` or ``expired``, as of the last look."""
        return str(self.info["status"])

    @property
    def done(self) -> int:
        """Images that are done, as of the last look."""
        return int(self.info["done"])

    @property
    def total(self) -> int:
        """Images in all."""
        return int(self.info["total"])

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in _ENDED

    def refresh(self, wait: float = 0.0) -> Job:
        """Ask the server how far it is.

        Args:
            wait: Seconds that the server may keep us waiting for the end.

        Returns:
            This job.

        Raises:
            ClientError: The server refused or cannot be reached.
        """
        params = {"wait": f"{wait:g}"} if wait > 0 else None
        timeout = self._transport.timeout + wait
        self.info = self._transport.json("GET", f"/v1/jobs/{quote(self.id)}", params=params, timeout=timeout)
        return self

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Job:
        """Wait until the job is done; a server that restarts meanwhile is waited for, and goes on with it.

        Args:
            timeout: Seconds; ``None`` for as long as it takes.
            progress: Show a bar.

        Returns:
            This job, done.

        Raises:
            JobFailedError: It failed, was cancelled or has expired.
            TimedOutError: The time was over; the job goes on.
            ClientError: The server refused, or could not be reached for as long as the client allows.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with Progress(f"job {self.id}", self.total, "img", start=self.done, quiet=not progress) as bar:
            while not self.ended:
                left = 20.0 if until is None else until - time.monotonic()
                if left <= 0:
                    raise TimedOutError(f"{self.id} is {self.status} after {timeout:g} s: it goes on, wait again or cancel it")
                self.refresh(min(left, 0.5 if progress else 20.0))
                bar.update(self.done, str(self.info.get("note") or "") if self.status == "queued" else "")
        if self.status != "done":
            error = self.info.get("error") or {}
            text = f"{self.id} is {self.status}" + (f": {error['message']}" if error.get("message") else "")
            raise JobFailedError(text, code=error.get("code"))
        return self

    def cancel(self) -> Job:
        """Cancel the job; one that has ended stays as it is.

        Returns:
            This job.

        Raises:
            ClientError: The server refused or cannot be reached.
        """
        self.info = self._transport.json("DELETE", f"/v1/jobs/{quote(self.id)}")
        return self

    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> Path:
        """Fetch the result: a zip of pictures with ``manifest.json``, or an npz. A broken connection goes on where it broke.

        Args:
            path: The file, or a folder that is there. An existing file is replaced once the new one is whole.
            progress: Show a bar.

        Returns:
            Where it is.

        Raises:
            InputError: The job is not done.
            ClientError: The server refused, or what came is not what its digest says.
            StorageError: The disk is full.
        """
        if not self.ended:
            self.refresh()
        result = self.info.get("result")
        if not result:
            raise InputError(f"{self.id} is {self.status} and has no result: wait for it first, with job.wait()")
        path = Path(path)
        path = path / f"{self.id}{result['suffix']}" if path.is_dir() else path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file, Progress("fetching", result["bytes"], "B", quiet=not progress) as bar:
                    digest = self._fetch(file, result, bar)
                    file.flush()
                    os.fsync(file.fileno())
                if digest != result["sha256"]:
                    raise ClientError(f"the result of {self.id} came damaged (its digest is another): fetch it again")
                os.chmod(name, 0o644)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return path

    def images(self) -> Images:
        """The result as arrays in memory.

        Returns:
            The images.

        Raises:
            InputError: The job is not done.
            ClientError: The server refused or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            return Images.of_file(self.save(Path(folder) / "result"))

    def _fetch(self, file: Any, result: dict[str, Any], bar: Progress) -> str:
        """Write the result to a file; the digest of what came."""
        digest, etag = hashlib.sha256(), f'"{result["sha256"]}"'

        def some(left: float) -> None:
            nonlocal digest
            there = file.tell()
            headers = {"Range": f"bytes={there}-", "If-Range": etag} if there else {}
            with self._transport.stream(f"/v1/jobs/{quote(self.id)}/result", headers, left) as answer:
                if answer.status_code == 200 and there:  # all of it again
                    file.seek(0)
                    file.truncate()
                    digest = hashlib.sha256()
                for block in answer.iter_bytes():
                    file.write(block)
                    digest.update(block)
                    bar.update(file.tell())
            if file.tell() < result["bytes"]:
                raise NoConnectionError(f"the result of {self.id} broke off at {file.tell()} of {result['bytes']} bytes")

        while file.tell() < result["bytes"]:
            before = file.tell()
            try:
                self._transport.again(some)
            except NoConnectionError:
                if file.tell() <= before:  # as long as something comes, it goes on
                    raise
        return digest.hexdigest()
