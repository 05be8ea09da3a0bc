"""The bare model for comparison with the service: batched network calls in a loop, and nothing else.

    python benchmarks/serving_bare.py MODEL --batch 64 --seconds 10     images a second, as JSON (--form service: of the network
                                                                        in the form in which the service runs it)
    python benchmarks/serving_bare.py --canned FILE --port 8001         answers every request with the bytes of FILE

The second form stands where the service would, so that a load generator has the same work beside the bare model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path


def bare(name: str, batch: int, seconds: float, threads: int, form: str) -> dict[str, float | str]:
    """Images a second of ``model(x, sigma)``, or of the recorded, channels-last network that the service makes of it."""
    import torch

    import atonce
    from atonce.serving.backends import call_of, eager
    from atonce.serving.buckets import probe

    torch.set_num_threads(threads)
    model = atonce.load(name)
    x = torch.randn((batch, *model.shape), generator=torch.Generator().manual_seed(0)) * model.sigma_max
    labels = torch.arange(batch) % len(model.labels) if model.labels else None
    calls, spent = 0, 0.0
    call = partial(model, x, model.sigma_max, labels)
    if form == "service":
        call = partial(call_of(model, eager(model)), probe(model, batch))
    with torch.inference_mode():
        for _ in range(3):
            call()
        print("ready", flush=True)
        sys.stdin.readline()  # the load generator is started first
        start = time.perf_counter()
        while spent < seconds:
            call()
            calls += 1
            spent = time.perf_counter() - start
    rate = {"images/s": calls * batch / spent, "seconds of a call": spent / calls}
    return {**rate, "batch": batch, "threads": threads, "form": form}


async def canned(content: bytes, port: int) -> None:
    """A server that answers every POST with the same bytes, as cheaply as can be."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                headers = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in headers else 0
                await reader.readexactly(length)
                writer.write(head + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Parse and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", choices=["plain", "service"], default="plain")
    parser.add_argument("--canned", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    if options.canned is not None:
        asyncio.run(canned(options.canned.read_bytes(), options.port))
    else:
        found = bare(options.model, options.batch, options.seconds, options.threads, options.form)
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
