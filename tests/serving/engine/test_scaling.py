"""The autoscaler's target can be reached, however slow the model is: refusals begin above it and not below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atonce.serving.errors import ServiceError
from atonce.serving.rows import ask_for

yaml = pytest.importorskip("yaml", reason="the files are read with pyyaml (extra dev)")
K8S = Path(__file__).resolve().parents[3] / "deploy" / "k8s"


def target() -> float:
    """What the autoscaler holds a replica's expected share of its promise against."""
    found = yaml.safe_load((K8S / "autoscaler.yaml").read_text())["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
    return float(found.removesuffix("m")) / 1000 if found.endswith("m") else float(found)


@pytest.mark.parametrize("per_row", [0.4, 0.06, 0.01])
def test_replicas_are_added_before_callers_are_refused(per_row: float, faked: Any) -> None:
    engine, network = faked(per_row=per_row, held=True)
    reached, rows = [], []
    with pytest.raises(ServiceError) as problem:
        while True:
            engine.submit(ask_for(engine.model, 1, labels=0))
            if not reached:
                network.wait()  # a call is under way, as under load
            status = engine.status()
            reached.append(status.wait / status.promise)
            rows.append(status.waiting)
    assert problem.value.code == "overloaded"
    network.free()
    assert max(reached) > target(), "the metric passes the target before anybody is refused"
    assert reached[0] < target() or per_row > 0.1, "and an idle replica is below it"
    if per_row >= 0.06:
        assert max(rows) < 64, "a number of rows that is right for a fast model is never reached by a slow one"
