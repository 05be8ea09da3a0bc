"""Formulas as MathML from short strings, so that every browser sets them without a library and a screen reader says them.

``x_t = y + t z``, ``@frac{a}{b}``, ``@sqrt{a}``, ``@hat{x}``, ``@text{words}``, ``a_{n+1}``, ``f^{-}``; other signs are
Unicode.
"""

from __future__ import annotations

import html
import re

_TOKEN = re.compile(r"@(?P<name>[a-z]+)|(?P<number>\d+(?:\.\d+)?)|(?P<sign>\S)")
_PROSE = re.compile(r"\$\$(?P<block>.+?) :: (?P<said>.+?)\$\$|\$(?P<line>[^$]+)\$")
_LETTER = re.compile(r"[A-Za-zα-ωΑ-Ωϵ∅]")


def prose(text: str) -> str:
    """HTML with its formulas set: ``$x$`` in a line, ``$$x :: how it is said$$`` on a line of its own.

    Args:
        text: The HTML.

    Returns:
        HTML with MathML.

    Raises:
        ValueError: A formula is not well formed.
    """

    def one(found: re.Match[str]) -> str:
        if found["line"] is not None:
            return formula(found["line"], block=False)
        return formula(found["block"], found["said"])

    return _PROSE.sub(one, text)


def formula(text: str, said: str = "", block: bool = True) -> str:
    """A formula.

    Args:
        text: As above.
        said: How it is said in words, for readers that know no MathML.
        block: On a line of its own.

    Returns:
        A ``math`` element.

    Raises:
        ValueError: The string is not well formed.
    """
    tokens = [(found.lastgroup or "", found[found.lastgroup or 0]) for found in _TOKEN.finditer(_words(text))]
    body, rest = _row(tokens, 0, end="")
    if rest != len(tokens):
        raise ValueError(f"the formula {text!r} has a closing brace too many")
    alternative = f' alttext="{html.escape(said)}"' if said else ""
    return f"<math{' display=' + chr(34) + 'block' + chr(34) if block else ''}{alternative}><mrow>{body}</mrow></math>"


_SPACE = "\u2423"  # stands for a space within words, since tokens are separated by spaces


def _words(text: str) -> str:
    return re.sub(r"@text\{([^{}]*)\}", lambda found: "@text{" + found[1].replace(" ", _SPACE) + "}", text)


def _row(tokens: list[tuple[str, str]], at: int, end: str) -> tuple[str, int]:
    """Parts up to a closing brace, or to the end."""
    parts: list[str] = []
    while at < len(tokens):
        if tokens[at][1] == "}":
            if end != "}":
                return "".join(parts), at
            return "".join(parts), at + 1
        part, at = _scripted(tokens, at)
        parts.append(part)
    if end:
        raise ValueError("a brace of a formula is not closed")
    return "".join(parts), at


def _scripted(tokens: list[tuple[str, str]], at: int) -> tuple[str, int]:
    """A part with what is below and above it."""
    base, at = _part(tokens, at)
    low = high = ""
    while at < len(tokens) and tokens[at][1] in "_^":
        mark = tokens[at][1]
        script, at = _part(tokens, at + 1)
        low, high = (script, high) if mark == "_" else (low, script)
    if low and high:
        return f"<msubsup>{base}{low}{high}</msubsup>", at
    if low:
        return f"<msub>{base}{low}</msub>", at
    return (f"<msup>{base}{high}</msup>" if high else base), at


def _part(tokens: list[tuple[str, str]], at: int) -> tuple[str, int]:
    if at >= len(tokens):
        raise ValueError("a formula ends where a part is missing")
    kind, value = tokens[at]
    if kind == "name":
        return _command(value, tokens, at + 1)
    if kind == "number":
        return f"<mn>{value}</mn>", at + 1
    if value == "{":
        body, at = _row(tokens, at + 1, end="}")
        return f"<mrow>{body}</mrow>", at
    if _LETTER.fullmatch(value):
        return f"<mi>{value}</mi>", at + 1
    return f"<mo>{html.escape(value)}</mo>", at + 1


def _command(name: str, tokens: list[tuple[str, str]], at: int) -> tuple[str, int]:
    if name == "text":
        if at >= len(tokens) or tokens[at][1] != "{":
            raise ValueError("@text needs braces")
        words, at = [], at + 1
        while at < len(tokens) and tokens[at][1] != "}":
            words.append(tokens[at][1])
            at += 1
        return f"<mtext>{html.escape(''.join(words).replace(_SPACE, chr(0xA0)))}</mtext>", at + 1
    first, at = _part(tokens, at)
    match name:
        case "sqrt":
            return f"<msqrt>{first}</msqrt>", at
        case "hat":
            return f'<mover accent="true">{first}<mo>^</mo></mover>', at
        case "frac":
            second, at = _part(tokens, at)
            return f"<mfrac>{first}{second}</mfrac>", at
        case _:
            raise ValueError(f"formulas know no @{name}; they know frac, sqrt, hat, text")
