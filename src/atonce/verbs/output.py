"""How a verb shows its result."""

from __future__ import annotations

import json
from typing import Any


def show(facts: Any, text: str, as_json: bool) -> None:
    """Print the result of a verb.

    Args:
        facts: The result as JSON values.
        text: The same for people.
        as_json: Whether the facts are wanted.
    """
    print(json.dumps(facts, indent=2) if as_json else text)
