"""The verb ``gallery``."""

from __future__ import annotations

import atonce
from atonce.verbs.output import show


def gallery(json: bool = False) -> int:
    """List the models that come with the package.

    Example: atonce gallery

    Args:
        json: Print the list as JSON.

    Returns:
        The exit status.
    """
    from atonce.exchange.gallery import gallery_names

    models = {name: atonce.load(name) for name in gallery_names()}
    facts = {n: {"shape": list(m.shape), "kind": m.kind, "labels": m.labels, "card": m.card} for n, m in models.items()}
    rows = [f"{n:16} {m.kind}, {'x'.join(map(str, m.shape))}  {m.card.get('description', '')}" for n, m in models.items()]
    show(facts, "\n".join(rows) or "the gallery is empty", json)
    return 0
