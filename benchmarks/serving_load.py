"""A load generator for the service, in a process of its own: ``python benchmarks/serving_load.py URL --seconds 30``.

Clients in a closed loop (the next request when the answer is there), or requests at a fixed rate whatever comes back. A few
requests with fixed seeds are sent again and again, and every answer must have the bytes of the first answer to that request.
What was seen is written as JSON.

It speaks HTTP over plain sockets: on a small machine a comfortable client would take as much of the processor as the service.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """One answer, as it arrived."""

    end: float
    seconds: float
    status: int
    says_when: bool
    size: int
    images: int
    queue: float | None  # seconds that it waited for the network, as the server says


@dataclass
class Seen:
    """What came back, in order of arrival."""

    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    digests: dict[int, str] = field(default_factory=dict)
    differing: int = 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", default=None)
    parser.add_argument("--clients", type=int, default=32, help="clients of the closed loop, or the most requests on their way")
    parser.add_argument("--n", type=int, default=4, help="images of a request")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--form", default="npz", help="format of the images")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm", type=float, default=2.0, help="seconds at the start that are not counted")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, sent whatever comes back; 0: closed loop")
    parser.add_argument("--pace", type=float, default=0.0, help="most requests a second of the closed loop; 0: no limit")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument(
        "--bodies", type=Path, help="JSON file of further requests, [path, body, images], sent in turn with these"
    )
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


@dataclass(frozen=True)
class Request:
    """One of the requests that are sent in turn."""

    path: str
    body: bytes
    images: int


def requests_of(options: argparse.Namespace) -> list[Request]:
    """The requests that are sent in turn."""
    common = {"n": options.n, "steps": options.steps, "format": options.form, "response": "binary"}
    common |= {"model": options.model} if options.model else {}
    wanted = [("/v1/generate", common | {"seed": seed}, options.n) for seed in range(options.seeds)]
    wanted += json.loads(options.bodies.read_text()) if options.bodies else []
    return [Request(path, json.dumps(body).encode(), images) for path, body, images in wanted]


class Connections:
    """Connections to one server that are used again.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        self._host, self._port = found.hostname or "127.0.0.1", found.port or 80
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of an answer.

        Raises:
            OSError: The connection failed or ended early.
        """
        again = bool(self._free)
        reader, writer = self._free.pop() if again else await asyncio.open_connection(self._host, self._port)
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        try:
            writer.write(f"{head}\r\n\r\n".encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
            content = await reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            writer.close()
            if again and not error.partial:  # it was closed while nobody used it
                return await self.post(path, body)
            raise ConnectionError("the answer ended early") from error
        except OSError:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        """Close those that are not in use."""
        for _, writer in self._free:
            writer.close()


async def ask(server: Connections, number: int, requests: list[Request], seen: Seen) -> None:
    """One request."""
    number %= len(requests)
    request = requests[number]
    start = time.perf_counter()
    try:
        status, headers, content = await server.post(request.path, request.body)
    except OSError as error:
        seen.failures[type(error).__name__] += 1
        await asyncio.sleep(0.05)
        return
    end = time.perf_counter()
    waited = re.search(r"queue;dur=([\d.]+)", headers.get("server-timing", ""))
    queue = float(waited.group(1)) / 1000 if waited else None
    seen.answers.append(Answer(end, end - start, status, "retry-after" in headers, len(content), request.images, queue))
    if status == 200:
        digest = hashlib.sha256(content).hexdigest()
        seen.differing += seen.digests.setdefault(number, digest) != digest
    elif status not in (429, 503):
        seen.others[f"{status} {request.path} {content[:200].decode(errors='replace')}"] += 1


async def closed(server: Connections, requests: list[Request], options: argparse.Namespace, seen: Seen, until: float) -> None:
    """Every client asks, waits for the answer, and asks again; one that is refused waits a moment."""
    start, sent = time.perf_counter(), 0

    async def one() -> None:
        nonlocal sent
        while (now := time.perf_counter()) < until:
            if options.pace and sent > options.pace * (now - start):
                await asyncio.sleep(0.002)
                continue
            sent += 1
            before = len(seen.answers)
            await ask(server, sent, requests, seen)
            if len(seen.answers) > before and seen.answers[-1].status in (429, 503):
                await asyncio.sleep(0.02)

    await asyncio.gather(*(one() for _ in range(options.clients)))


async def at_a_rate(
    server: Connections, requests: list[Request], options: argparse.Namespace, seen: Seen, until: float
) -> None:
    """Requests at fixed times, whether or not earlier ones are answered."""
    start, sent = time.perf_counter(), 0
    running: set[asyncio.Task[None]] = set()
    while (now := time.perf_counter()) < until:
        while sent < options.rate * (now - start) and len(running) < options.clients:
            task = asyncio.create_task(ask(server, sent, requests, seen))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*running)


def told(seen: Seen, options: argparse.Namespace, start: float) -> dict[str, Any]:
    """What was seen, as numbers. Answers count from the end of the warm-up to the end of sending."""
    begin, end = start + options.warm, start + options.seconds
    counted = [each for each in seen.answers if begin <= each.end <= end]
    good = sorted(each.seconds for each in counted if each.status == 200)
    bad = [each for each in seen.answers if each.status != 200]
    waits = sorted(each.queue for each in counted if each.status == 200 and each.queue is not None)
    return {
        "requests": len(counted),
        "images/s": sum(each.images for each in counted if each.status == 200) / (end - begin),
        "requests/s": len(counted) / (end - begin),
        "statuses": dict(sorted(Counter(str(each.status) for each in seen.answers).items())),
        "refused without Retry-After": sum(each.status in (429, 503) and not each.says_when for each in bad),
        "5xx other than 503": sum(each.status >= 500 and each.status != 503 for each in bad),
        "other answers": dict(seen.others),
        "connection failures": dict(seen.failures),
        "answers that differ from the first to that request": seen.differing,
        "seconds": {
            **{name: quantile(good, q) for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items() if good},
            **({"mean": statistics.fmean(good), "max": good[-1]} if good else {}),
        },
        "seconds in the queue, p99": quantile(waits, 0.99) if waits else None,
        "seconds of a refusal, p99": quantile(sorted(each.seconds for each in bad), 0.99) if bad else None,
        "bytes": statistics.fmean([each.size for each in counted if each.status == 200] or [0]),
    }


def quantile(ordered: list[float], q: float) -> float:
    """A quantile of ordered values, the value at or above it."""
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


async def work(options: argparse.Namespace) -> dict[str, Any]:
    """Send, and say what came back."""
    seen, server = Seen(), Connections(options.url)
    start = time.perf_counter()
    send = at_a_rate if options.rate else closed
    await send(server, requests_of(options), options, seen, start + options.seconds)
    server.close()
    return told(seen, options, start)


def main() -> None:
    """Parse, work, print."""
    options = arguments()
    found = json.dumps(asyncio.run(work(options)), indent=1)
    if options.out is None:
        sys.stdout.write(found + "\n")
    else:
        options.out.write_text(found + "\n")


if __name__ == "__main__":
    main()
