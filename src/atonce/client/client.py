"""The client: models, images, edits and jobs of a server, in a few typed calls."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from atonce.client.edits import Edits, edit_body
from atonce.client.images import Images
from atonce.client.jobs import Job
from atonce.client.transport import Transport
from atonce.client.values import plain

if TYPE_CHECKING:
    import httpx

Labels = int | str | Sequence[int | str]
Form = Literal["png", "webp", "jpeg", "npz"]


class Client(Edits):
    """A server that ``atonce serve`` started, from Python.

    For example::

        import atonce

        with atonce.Client("http://127.0.0.1:8000") as client:
            made = client.generate(4, seed=7)
            made.save("images")
            print(made.images.shape, made.seeds, made.version)

            job = client.submit_generate(10_000, seed=1)
            job.wait(progress=True).save("ten-thousand.zip")

    Every call is tried again after a lost connection and where the server says to come back later, until ``timeout`` is over.
    That is safe: a seed that is not given is drawn here before the first try, so the same request gives the same images, and a
    job that is submitted twice by a retry is accepted once. A client may be used by several threads.

    Args:
        url: Where the server is.
        key: API key, where it wants one.
        timeout: Seconds that a call may take, all its tries together.
        transport: What sends requests, instead of the network (``httpx.ASGITransport`` and the like).

    Raises:
        InputError: The address or the key cannot be used.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(url, key, timeout, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    # ---- models

    def models(self) -> list[dict[str, Any]]:
        """The models of the server.

        Returns:
            Facts of each: ``id``, version, shape, labels and so on.

        Raises:
            ClientError: The server refused or cannot be reached.
        """
        return list(self._transport.json("GET", "/v1/models")["data"])

    def model(self, name: str) -> dict[str, Any]:
        """One model.

        Args:
            name: Its name.

        Returns:
            Its facts.

        Raises:
            NotFoundError: There is none with this name.
        """
        return dict(self._transport.json("GET", f"/v1/models/{quote(name, safe='')}"))

    # ---- images

    def generate(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        first: int | None = None,
        labels: Labels | None = None,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: float | None = None,
        ema: str | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> Images:
        """Make images from noise.

        For example ``client.generate(3, seed=1, labels="bag").pil()[0].show()``. The same arguments give the same images.

        Args:
            n: Number of images; default: as many as there are labels or seeds, else 1.
            seed: Seed of all; drawn (and told in the result) when not given.
            seeds: One for each image, instead.
            first: Index of the first image.
            labels: Classes by number or name, one for all or one for each.
            steps: Intervals.
            sigmas: Noise levels, descending, instead of steps.
            guidance: Scale of guidance.
            ema: Name of another set of weights.
            model: Name of the model; default: the server's first.
            version: A version of it.

        Returns:
            The images.

        Raises:
            ClientError: The server refused or cannot be reached.
            InputError: A value is no number, text or list of them.
        """
        body = _generate_body({name: value for name, value in locals().items() if name != "self"})
        return Images.of_answer(self._transport.json("POST", "/v1/generate", {**body, "format": "npz", "response": "json"}))

    def edit(self, kind: str, **fields: Any) -> Images:
        """Send an edit by its name; each has a method of its own, too.

        For example ``client.edit("inpaint", image="in.png", mask=mask, seed=1)``.

        Args:
            kind: ``inpaint``, ``outpaint``, ``colorize``, ``upscale``, ``restore``, ``stroke``, ``variations``, ``local``,
                ``denoise`` or ``interpolate``.
            fields: The fields of its request; pictures as PIL images, arrays, paths or bytes.

        Returns:
            The results; those of one picture stand together.

        Raises:
            ClientError: The server refused or cannot be reached.
            InputError: A picture is none.
        """
        body = {**edit_body(kind, fields), "format": "npz", "response": "json"}
        return Images.of_answer(self._transport.json("POST", f"/v1/edits/{quote(kind, safe='')}", body))

    # ---- jobs

    def submit_generate(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        first: int | None = None,
        labels: Labels | None = None,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: float | None = None,
        ema: str | None = None,
        model: str | None = None,
        version: str | None = None,
        format: Form = "png",
    ) -> Job:
        """Let the server make many images in its own time; see :meth:`generate`.

        For example ``client.submit_generate(50_000, seed=1).wait(progress=True).save("images.zip")``.

        Args:
            n: Number of images.
            seed: Seed of all.
            seeds: One for each image, instead.
            first: Index of the first image.
            labels: Classes by number or name.
            steps: Intervals.
            sigmas: Noise levels, descending, instead of steps.
            guidance: Scale of guidance.
            ema: Name of another set of weights.
            model: Name of the model.
            version: A version of it.
            format: Pictures in a zip with ``manifest.json``, or one ``npz``.

        Returns:
            The job.

        Raises:
            ClientError: The server refused or cannot be reached.
            InputError: A value is no number, text or list of them.
        """
        body = _generate_body({name: value for name, value in locals().items() if name not in ("self", "format")})
        return self._submit("generate", {**body, "format": format})

    def submit_edit(self, kind: str, *, format: Form = "png", **fields: Any) -> Job:
        """Let the server make an edit of many pictures, or with many results, in its own time; see :meth:`edit`.

        Args:
            kind: Name of the edit.
            format: Pictures in a zip with ``manifest.json``, or one ``npz``.
            fields: The fields of its request.

        Returns:
            The job.

        Raises:
            ClientError: The server refused or cannot be reached.
            InputError: A picture is none.
        """
        return self._submit(kind, {**edit_body(kind, fields), "format": format})

    def job(self, id: str) -> Job:
        """A job by its id.

        Args:
            id: ``job.id`` of an earlier call.

        Returns:
            The job as it is now.

        Raises:
            NotFoundError: There is none, or it is not this key's.
        """
        return Job(self._transport, self._transport.json("GET", f"/v1/jobs/{quote(id, safe='')}"))

    def jobs(self, status: str | None = None) -> Iterator[Job]:
        """All jobs of this key, newest first.

        Args:
            status: Only those with it.

        Yields:
            Jobs.

        Raises:
            ClientError: The server refused or cannot be reached.
        """
        before = None
        while True:
            asked = {"limit": 100, "status": status, "before": before}
            page = self._transport.json("GET", "/v1/jobs", params={k: v for k, v in asked.items() if v is not None})
            for info in page["data"]:
                yield Job(self._transport, info)
            if not page["has_more"]:
                return
            before = page["data"][-1]["id"]

    def _submit(self, kind: str, request: dict[str, Any]) -> Job:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return Job(
            self._transport, self._transport.json("POST", "/v1/jobs", {"kind": kind, "request": request}, headers=headers)
        )


def _generate_body(fields: dict[str, Any]) -> dict[str, Any]:
    body = {name: plain(value, name) for name, value in fields.items() if value is not None}
    if "seed" not in body and "seeds" not in body:
        body["seed"] = secrets.randbelow(1 << 53)
    return body
