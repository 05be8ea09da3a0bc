"""Bodies that are cheap to send and dear to look at: they are refused, and meanwhile everybody else is answered."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from atonce.serving.asking import check_lists
from atonce.serving.errors import ServiceError
from atonce.serving.schemas import GenerateRequest

NULLS = "null," * 300_000
HEAVY = {
    "labels that are none": ("/v1/generate", '{"labels":[' + NULLS + "1]}"),
    "seeds that are none": ("/v1/generate", '{"seeds":[' + NULLS + "1]}"),
    "noise levels that are none": ("/v1/generate", '{"sigmas":[' + NULLS + "1]}"),
    "names that nobody knows": ("/v1/generate", json.dumps({f"k{i}": i for i in range(300_000)})),
    "names within a job": ("/v1/jobs", json.dumps({"kind": "generate", "request": {f"k{i}": i for i in range(300_000)}})),
    "a million labels": ("/v1/generate", '{"labels":[' + "1," * 1_099_999 + "1]}"),
    "labels of a job": ("/v1/jobs", '{"kind":"generate","request":{"labels":[' + NULLS + "1]}}"),
    "labels that a job may have": ("/v1/jobs", '{"kind":"generate","request":{"labels":[' + "null," * 99_999 + "1]}}"),
    "pictures that are none": ("/v1/edits/stroke", '{"image":[' + NULLS + "1]}"),
    "a list for a number": ("/v1/generate", '{"n":[[' + NULLS + "1]]}"),
}


@pytest.fixture(scope="module")
def longest() -> float:
    """Seconds of this process's own computing that /livez may take; other processes of the machine do not count."""
    return 0.5


@pytest.mark.parametrize("what", HEAVY)
def test_others_are_answered_meanwhile(listen: Any, longest: float, what: str) -> None:
    address, _ = listen("digits")
    path, body = HEAVY[what]
    found: list[httpx.Response] = []

    def send() -> None:
        head = {"Content-Type": "application/json"}
        found.append(httpx.post(address + path, content=body, headers=head, timeout=300))

    took: list[float] = []
    with httpx.Client(base_url=address, timeout=300) as http:
        assert http.get("/livez").status_code == 200
        sender = threading.Thread(target=send)
        sender.start()
        while sender.is_alive() or not took:
            begun = time.process_time()
            assert http.get("/livez").status_code == 200
            took.append(time.process_time() - begun)
            time.sleep(0.01)
        sender.join()
    assert found[0].status_code in (400, 413), found[0].text[:300]
    assert len(found[0].content) < 1000
    assert max(took) < longest, f"/livez took {max(took):.2f} s"


def test_nothing_behind_the_first_fault_of_a_list_is_looked_at() -> None:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate({"labels": [1, 2, *[None] * 1000]}, strict=True)
    places = {part for each in caught.value.errors() for part in each["loc"] if isinstance(part, int)}
    assert places == {2}
    assert len(caught.value.errors()) < 10


def test_lists_are_as_long_as_what_they_are_for() -> None:
    check_lists({"labels": [1] * 64, "sigmas": [1.0] * 1000}, GenerateRequest, 64)
    check_lists({"unknown": [0] * 5000}, GenerateRequest, 64)  # said as an unknown field
    check_lists([1] * 5000, GenerateRequest, 64)
    with pytest.raises(ServiceError, match="65 images are asked for, one job may have 64: make several") as caught:
        check_lists({"seeds": [1] * 65}, GenerateRequest, 64, "job", "make several jobs")
    assert (caught.value.status, caught.value.param) == (413, "n")
    with pytest.raises(ServiceError, match="sigmas is a list of 1,025 values") as caught:
        check_lists({"sigmas": [1.0] * 1025}, GenerateRequest, 2000)
    assert (caught.value.status, caught.value.param) == (413, "sigmas")


def test_a_form_of_many_numbers_is_refused_too(client: Any) -> None:
    answer = client.post("/v1/generate", files={"seeds": (None, "1," * 400_000 + "1")})
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "n"
