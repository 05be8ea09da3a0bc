"""Thousands of hostile requests to the whole application: each gets a refusal or an answer, and the process is as before."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI

from atonce.serving.settings import ServeSettings

METHODS = ["GET", "POST", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get"]
KINDS = [
    "application/json", "application/json", "application/json", "application/json; charset=utf-16", "text/plain", "image/png",
    "multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=\"",
    "application/x-www-form-urlencoded", "application/octet-stream", "application/problem+json", "*/*", "",
    ";", "\xff\xfe", "application/json, text/html",
]  # fmt: skip
WORDS = [
    "", "x", "digits", "0", "-1", "1e999", "null", "..", "../../etc/passwd", "%2e%2e%2f", "%00", "\x00", "\ud83d\ude00",
    "a" * 300,
    "' OR 1=1 --", "<script>", "${jndi:ldap://x}", "{{7*7}}", "\r\nSet-Cookie: a=b", "атонце", "data:image/png;base64,AAAA",
    "file:///etc/passwd", "http://169.254.169.254/", "\u202e", "nan", "NaN", "Infinity", "true", "[]", "__class__", "%s%s%n",
]  # fmt: skip
HEADERS = [
    "accept", "x-request-id", "authorization", "idempotency-key", "range", "x-forwarded-for", "origin", "content-encoding",
    "if-none-match", "cookie", "host", "traceparent",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 5, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e-320, 1e308, 3.0, 80.0, 1e9]


def png(width: int, height: int, content: bytes = b"", *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG as its header says; the pixels may say otherwise."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = content or b"".join(b"\0" + b"\x80" * width for _ in range(min(height, 64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SMALL = png(8, 8)
PICTURES = [
    SMALL, SMALL, SMALL, png(28, 28), png(100_000, 100_000), png(0, 0), png(8, 2**31 - 1), SMALL[:40], SMALL[:-20], b"",
    b"GIF89a", png(8, 8, b"\0" * 50_000_000)[:60_000], png(8, 8, depth=16), png(8, 8, colour=3), png(8, 8, colour=6),
    b"\xff\xd8\xff\xe0", b"RIFF\x00\x00\x00\x00WEBP", b"<svg/>", b"\x00" * 1000, b"PK\x03\x04",
]  # fmt: skip


class Hostile:
    """Requests, each a function of the seed and its place."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self.draw = random.Random(seed)
        self.paths = list(document["paths"])
        self.schemas = document.get("components", {}).get("schemas", {})
        paths = document["paths"].items()
        self.routes = [(method.upper(), path, doing) for path, item in paths for method, doing in item.items()]

    def word(self) -> str:
        if self.draw.random() < 0.7:
            return self.draw.choice(WORDS)
        return "".join(chr(self.draw.randrange(1, 0x2FFF)) for _ in range(self.draw.randrange(20)))

    def value(self, depth: int = 0) -> Any:
        kind = self.draw.randrange(9 if depth < 4 else 6)
        if kind < 2:
            return self.word()
        if kind < 4:
            return self.draw.choice(NUMBERS)
        if kind == 4:
            return self.draw.choice([None, True, False])
        if kind == 5:
            return self.picture()
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.draw.randrange(6))]
        return {self.word(): self.value(depth + 1) for _ in range(self.draw.randrange(5))}

    def picture(self) -> str:
        text = base64.b64encode(self.draw.choice(PICTURES)).decode()
        return ("data:image/png;base64," if self.draw.random() < 0.2 else "") + text

    def like(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that fits a schema more or less; one part in eight is anything."""
        schema = self.schemas.get(schema["$ref"].rpartition("/")[2], {}) if "$ref" in schema else schema
        if self.draw.random() < 0.12 or depth > 6:
            return self.value(depth)
        for word in ("anyOf", "oneOf", "allOf"):
            if word in schema:
                return self.like(self.draw.choice(schema[word]), depth + 1)
        if "enum" in schema:
            return self.draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        kind = schema.get("type")
        if kind == "object":
            needed = schema.get("required", [])
            fields = {k: v for k, v in schema.get("properties", {}).items() if k in needed or self.draw.random() < 0.25}
            return {k: self.like(v, depth + 1) for k, v in fields.items() if self.draw.random() < 0.97}
        if kind == "array":
            return [self.like(schema.get("items", {}), depth + 1) for _ in range(self.draw.randrange(1, 4))]
        if kind == "integer":
            return self.draw.choice([0, 1, 1, 1, 2, 3, schema.get("maximum", 4), schema.get("minimum", 0)])
        if kind == "number":
            return self.draw.choice([0.0, 0.5, 1.0, 2.5, 80.0])
        if kind == "string":
            return self.draw.choice([self.picture(), self.picture(), self.word()])
        return self.draw.choice([None, True, False]) if kind in ("boolean", "null") else self.value(depth)

    def damaged(self, body: bytes) -> bytes:
        """Cut, turned over, repeated, or filled in."""
        way = self.draw.randrange(6)
        at = self.draw.randrange(len(body) + 1)
        if way == 0:
            return body[:at]
        if way == 1:
            return body[:at] + self.draw.randbytes(self.draw.randrange(1, 9)) + body[at:]
        if way == 2:
            return body[:at] + bytes([self.draw.randrange(256)]) + body[at + 1 :]
        if way == 3:
            return body + body
        return body[:at] + self.draw.choice(
            [b"NaN", b"[" * 5000, b'{"a":' * 60, b"\\ud800", b"\\u0000", b"9" * 6000, b'"', b"\xff"]
        )

    def form(self) -> tuple[bytes, str]:
        """A form with files, sound or not."""
        line = self.draw.choice(["x", "atonce", "-", "a" * 80])
        parts = b""
        for _ in range(self.draw.randrange(6)):
            name = self.draw.choice(["image", "mask", "prompt", "n", "model", "size", "image[]", self.word()])
            file = f'; filename="{self.draw.choice(["a.png", "../a", "", self.word()])}"' if self.draw.random() < 0.6 else ""
            head = f'Content-Disposition: form-data; name="{name}"{file}\r\n'.encode("utf-8", "replace")
            content = self.draw.choice([*PICTURES, b"digits", b"1", b"-1", self.word().encode("utf-8", "replace")])
            parts += b"--" + line.encode() + b"\r\n" + head + b"\r\n" + content + b"\r\n"
        body = parts + b"--" + line.encode() + b"--\r\n"
        return (self.damaged(body) if self.draw.random() < 0.3 else body), f"multipart/form-data; boundary={line}"

    def request(self) -> dict[str, Any]:
        method, path, kind = self.draw.choice(METHODS), self.draw.choice(self.paths), self.draw.choice(KINDS)
        body: bytes = b""
        way = self.draw.random()
        if way < 0.45:  # a route as it is meant, with a body that nearly fits
            method, path, doing = self.draw.choice([r for r in self.routes if "requestBody" in r[2]] or self.routes)
            schemas = doing.get("requestBody", {}).get("content", {})
            form = schemas.get("application/json", {})
            value = self.like(form.get("schema", {}))
            if "example" in form and self.draw.random() < 0.6:  # one that works, with a field or two of another value
                fitting = value if isinstance(value, dict) else {}
                changed = self.draw.sample(sorted(fitting), min(len(fitting), self.draw.randrange(3)))
                value = form["example"] | {name: fitting[name] for name in changed}
            body = json.dumps(value).encode()
            kind = "application/json"
            if self.draw.random() < 0.15:
                body = self.damaged(body)
        elif way < 0.6:
            method, path, _ = self.draw.choice([r for r in self.routes if "requestBody" in r[2]] or self.routes)
            body, kind = self.form()
        elif way < 0.75:
            body = json.dumps(self.value()).encode()
        elif way < 0.95:
            body = self.draw.randbytes(self.draw.choice([0, 1, 10, 1000, 70_000]))
        while "{" in path:
            before, _, rest = path.partition("{")
            path = before + self.word().replace("/", "%2F").replace("{", "") + rest.partition("}")[2]
        if self.draw.random() < 0.1:
            path = self.draw.choice(
                ["/", "//", "/" + self.word(), path + "/", path + "/..", path.upper(), "/v1/../" + self.word()]
            )
        if self.draw.random() < 0.15:
            path += "?" + "&".join(f"{self.word()}={self.word()}" for _ in range(self.draw.randrange(4)))
        headers = [(b"content-type", kind.encode("latin-1"))] if self.draw.random() < 0.95 else []
        for _ in range(self.draw.randrange(3)):
            name = self.draw.choice(HEADERS)
            headers.append((name.encode(), self.word().encode("utf-8", "replace")[:200]))
        return {"method": method, "path": path, "headers": headers, "body": body}


def settings(folder: Path) -> ServeSettings:
    return ServeSettings(
        models=("digits",), state=folder, backend="eager", threads=1, max_batch=4, max_images=3, max_steps=3, max_body=1 << 16,
        max_pixels=10_000, queue_seconds=600, request_seconds=300, rate="", job_workers=0, max_jobs=20, metrics=True,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def application(folder: Path) -> AsyncIterator[FastAPI]:
    from atonce.serving.app import create_app

    app = create_app(settings(folder))
    async with app.router.lifespan_context(app):
        yield app


async def send(app: FastAPI, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """One request without any client in between, which would refuse to send half of these."""
    raw_path, _, query = asked["path"].encode("utf-8", "surrogatepass").partition(b"?")
    parts = [asked["body"][k : k + 20_000] for k in range(0, len(asked["body"]), 20_000)] or [b""]
    answered = asyncio.Event()
    said: list[Any] = []

    async def receive() -> Any:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        await answered.wait()
        return {"type": "http.disconnect"}

    async def told(message: Any) -> None:
        said.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": asked["method"], "scheme": "http",
        "path": unquote(raw_path.decode("utf-8", "replace")), "raw_path": raw_path, "query_string": query, "root_path": "",
        "headers": [*asked["headers"], (b"content-length", str(len(asked["body"])).encode())],
        "client": ("10.0.0.1", 5000), "server": ("test", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, told)
    assert said, f"no answer to {asked}"
    assert said[0]["type"] == "http.response.start"
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in said[0]["headers"]}
    return said[0]["status"], headers, b"".join(message.get("body", b"") for message in said[1:])


def judge(asked: dict[str, Any], status: int, headers: dict[str, str], body: bytes) -> None:
    """What must be true of every answer."""
    shown = {**asked, "body": asked["body"][:300]}
    assert 200 <= status < 300 or 400 <= status < 500, (status, shown, body[:500])
    assert not any(c in value for value in headers.values() for c in "\r\n"), (headers, shown)
    assert headers["x-content-type-options"] == "nosniff"
    if status >= 400 and asked["method"] != "HEAD":
        found = json.loads(body)
        assert set(found) == {"error", "request_id"}, shown
        assert found["error"]["message"].strip(), shown
        assert len(found["error"]["message"]) < 2000, shown
        for inside in (b"Traceback", b"site-packages", b"/src/atonce", b".py"):
            assert inside not in body, (shown, body)


def memory() -> tuple[int, int]:
    """Objects of Python, and bytes of the process where Linux tells them."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pages = 0
    return len(gc.get_objects()), pages * 4096


async def bombard(folder: Path, count: int, seed: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    async with application(folder) as app:
        hostile = Hostile(app.openapi(), seed)
        before = (0, 0)
        for start in range(0, count, 100):
            if start == count // 2 // 100 * 100:
                before = memory()
            wave = [hostile.request() for _ in range(min(100, count - start))]
            for k in range(0, len(wave), 4):
                answers = await asyncio.gather(*(send(app, asked) for asked in wave[k : k + 4]))
                for asked, answer in zip(wave[k : k + 4], answers, strict=True):
                    judge(asked, *answer)
                    statuses[answer[0]] += 1
        objects, size = memory()
        half = count - count // 2
        assert objects - before[0] < 5000 + half, "objects are left behind"
        assert size - before[1] < (100 << 20), "memory grows"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=120) as http:
            made = await http.post("/v1/generate", json={"n": 2, "seed": 1})
            assert made.status_code == 200
            assert (await http.get("/readyz")).status_code == 200
    return statuses


def test_hundreds_of_hostile_requests(tmp_path: Path) -> None:
    statuses = asyncio.run(bombard(tmp_path, 500, seed=1))
    # Varied enough to reach all of these, and many get far enough to make images: else this would prove little.
    assert {200, 400, 403, 404, 405, 413, 415} <= set(statuses), statuses
    assert statuses[200] > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_hostile_requests(tmp_path: Path) -> None:
    statuses = asyncio.run(bombard(tmp_path, 10_000, seed=2))
    assert sum(statuses.values()) == 10_000
    assert statuses[200] > 500


def test_random_bytes_to_every_route(tmp_path: Path) -> None:
    """Every route with every method and noise as its body."""

    async def run() -> Counter[int]:
        draw, statuses = random.Random(3), Counter[int]()
        async with application(tmp_path) as app:
            for path in app.openapi()["paths"]:
                for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
                    for kind in (b"application/json", b"multipart/form-data; boundary=x", b"image/png"):
                        asked = {
                            "method": method, "path": path, "headers": [(b"content-type", kind)], "body": draw.randbytes(500),
                        }  # fmt: skip
                        answer = await send(app, asked)
                        judge(asked, *answer)
                        statuses[answer[0]] += 1
        return statuses

    statuses = asyncio.run(run())
    assert max(statuses) < 500
    assert statuses[400] > 20, "noise reached the routes that read bodies"
    assert statuses[405] > 50
