"""The page where somebody shows an API key once, and small answers of the door."""

from __future__ import annotations

import gzip
import html
from collections.abc import Mapping
from urllib.parse import parse_qs

from atonce.serving.bodies import Send
from atonce.serving.errors import ServiceError

_LONGEST = 4096

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #f7f6f2; --card: #ffffff; --line: #8a93a0; --accent: #265c8f;
  --on: #ffffff; --warn: #a3341f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --paper: #14181e; --card: #1d232b; --line: #77808d;
  --accent: #8dbde8; --on: #10151b; --warn: #ffa08a; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { width: min(26rem, 100%); background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.75rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
p { margin: 0 0 1.25rem; }
label { display: block; font-weight: 600; margin-bottom: .35rem; }
input { width: 100%; font: inherit; padding: .6rem .7rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
button { margin-top: 1rem; width: 100%; font: inherit; font-weight: 600; padding: .65rem; color: var(--on);
  background: var(--accent); border: 0; border-radius: 8px; cursor: pointer; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.wrong { color: var(--warn); margin: .6rem 0 0; }
"""


def page(wrong: str = "") -> str:
    """The page that asks for a key.

    Args:
        wrong: What was wrong with the last one.

    Returns:
        HTML without scripts.
    """
    said = f'<p class="wrong" id="wrong" role="alert">{html.escape(wrong)}</p>' if wrong else ""
    described = ' aria-describedby="wrong" aria-invalid="true"' if wrong else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in: atonce studio</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>
<body><main><h1>atonce studio</h1><p>Sign in with an API key of this server. Its owner makes one.</p>
<form method="post" action="login"><label for="key">API key</label>
<input id="key" name="key" type="password" required autofocus autocomplete="current-password" spellcheck="false"{described}>
{said}<button type="submit">Sign in</button></form></main></body></html>"""


def step() -> str:
    """A page that goes on to itself."""
    return """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>atonce studio</title></head>
<body><p><a href="./">Go on to the studio</a></p></body></html>"""


def key_in(body: bytes) -> str:
    """The key in a form.

    Args:
        body: Of the request.

    Returns:
        What was typed, without spaces around it.

    Raises:
        ServiceError: 400, it is missing or no text; 413, it is longer than any key.
    """
    if len(body) > _LONGEST:
        raise ServiceError(413, "too_large", f"what was sent is longer than {_LONGEST} bytes: a key has 63 characters")
    try:
        found = parse_qs(body.decode(), strict_parsing=True, max_num_fields=4).get("key", [""])[0].strip()
    except ValueError:
        found = ""
    if not found:
        raise ServiceError(400, "bad_request", "the key is missing: type or paste it")
    return found


async def respond(send: Send, status: int, text: str | bytes, headers: Mapping[str, str], packed: bool = False) -> None:
    """Send a page or a file.

    Args:
        send: Of ASGI.
        status: Of HTTP.
        text: HTML, or the content of a file whose type ``headers`` say.
        headers: Further ones.
        packed: Whether the caller takes gzip.
    """
    content = text.encode() if isinstance(text, str) else text
    # Without a referrer at all, a form's Origin would be "null" and could not be told from another site's.
    found = {"Content-Type": "text/html; charset=utf-8", "Referrer-Policy": "same-origin", **headers}
    if packed and len(content) > 2048:
        content, found["Content-Encoding"] = gzip.compress(content, 5, mtime=0), "gzip"
    found["Content-Length"] = str(len(content))
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in found.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
