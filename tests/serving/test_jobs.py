"""Jobs: done once, in parts that survive, by whoever is there; cancelled, put off, expired; each key sees its own."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

from PIL import Image

import atonce
from atonce.core.images import to_uint8
from atonce.serving.edits import run_edit
from atonce.serving.encode import encode
from atonce.serving.errors import ServiceError
from atonce.serving.job_files import JobFiles
from atonce.serving.job_work import cut
from atonce.serving.jobs import Jobs
from atonce.serving.schemas import EXAMPLE_PICTURE, GenerateRequest, VariationsRequest

sys.path.insert(0, str(Path(__file__).parent))
from jobs_process import ADMIN, ALICE, BOB, SlowEngine, ask, ended, lines, right, until

Make = Callable[..., tuple[Jobs, SlowEngine]]


def test_a_job_gives_a_zip_of_exactly_the_images_of_its_seed(make: Make, tmp_path: Path) -> None:
    jobs, engine = make()
    job = ended(jobs, ask(jobs, 600, first=40))
    assert (job.status, job.done, job.total, job.version, job.attempt) == ("done", 600, 600, "1", 1)
    job, path = jobs.result(ALICE, job.id)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == job.sha256
    assert path.stat().st_size == job.bytes
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        names = archive.namelist()
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names[:-1]])
        digests = [hashlib.sha256(archive.read(name)).hexdigest() for name in names[:-1]]
    assert np.array_equal(images[:, None], right(600, 7, 40))
    assert names == [*(f"{i:06d}.png" for i in range(600)), "manifest.json"]
    assert [entry["file"] for entry in manifest["images"]] == names[:-1]
    assert [entry["sha256"] for entry in manifest["images"]] == digests
    assert [entry["index"] for entry in manifest["images"]] == list(range(40, 640))
    told = {key: manifest[key] for key in ("kind", "model", "version", "backend", "seed", "n", "shape", "calls")}
    assert told == {
        "kind": "generate",
        "model": "digits",
        "version": "1",
        "backend": "eager",
        "seed": 7,
        "n": 600,
        "shape": [1, 8, 8],
        "calls": 1,
    }
    assert manifest["request"] == {"n": 600, "seed": 7, "first": 40}
    assert job.id not in json.dumps(manifest)
    assert engine.asked == [(7, 40, 256), (7, 296, 256), (7, 552, 88)]
    assert until(lambda: [path.name for path in (tmp_path / "jobs" / job.id).iterdir()] == [job.file]), "parts are gone"
    assert lines(tmp_path) == ["status generate queued", "status generate running", "status generate done"]


def test_an_npz_has_labels_and_seeds(make: Make) -> None:
    jobs, _ = make()
    job = ended(jobs, jobs.submit(ALICE, "generate", GenerateRequest(seeds=[5, 3, 5, 9], format="npz"))[0])
    with np.load(jobs.result(ALICE, job.id)[1]) as arrays:
        assert arrays["arr_0"].shape == (4, 8, 8, 1)
        assert arrays["arr_2"].tolist() == [5, 3, 5, 9]
        assert np.array_equal(arrays["arr_0"][0], arrays["arr_0"][2])
        assert np.array_equal(np.moveaxis(arrays["arr_0"][1:2], 3, 1), right(1, 3))


def test_a_job_without_a_seed_is_given_one_and_keeps_it(make: Make) -> None:
    jobs, engine = make()
    first, second = (ended(jobs, ask(jobs, 300, None)) for _ in range(2))
    assert len({seed for seed, _, _ in engine.asked}) == 2
    assert first.sha256 != second.sha256
    with zipfile.ZipFile(jobs.result(ALICE, first.id)[1]) as archive:
        assert json.loads(archive.read("manifest.json"))["seed"] == engine.asked[0][0]


def test_equal_jobs_have_equal_bytes(make: Make) -> None:
    jobs, _ = make()
    assert ended(jobs, ask(jobs, 300)).sha256 == ended(jobs, ask(jobs, 300)).sha256


def test_a_picture_of_a_job_is_the_picture_of_a_direct_request(make: Make) -> None:
    jobs, _ = make()
    job = ended(jobs, ask(jobs, 3))
    about = {"kind": "generate", "model": "digits", "version": "1", "seed": 7, "index": 2, "label": None}
    import torch

    with zipfile.ZipFile(jobs.result(ALICE, job.id)[1]) as archive:
        sigmas = json.loads(archive.read("manifest.json"))["sigmas"]
        direct = encode(torch.from_numpy(right(3, 7)[2]), "png", about | {"sigmas": sigmas})
        assert archive.read("000002.png") == direct


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_other_formats(make: Make, form: str) -> None:
    jobs, _ = make()
    job = ended(jobs, ask(jobs, 2, format=form))
    with zipfile.ZipFile(jobs.result(ALICE, job.id)[1]) as archive:
        assert archive.namelist() == [f"000000.{form}", f"000001.{form}", "manifest.json"]
        with Image.open(io.BytesIO(archive.read(f"000001.{form}"))) as picture:
            assert picture.format == form.upper()
            assert picture.size == (8, 8)


def test_an_edit_in_parts_gives_what_one_run_gives(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atonce.serving.job_work.EDIT_PART", 3)
    jobs, engine = make()
    request = VariationsRequest(image=[EXAMPLE_PICTURE, EXAMPLE_PICTURE], n=4, seed=3)
    job = ended(jobs, jobs.submit(ALICE, "variations", request)[0])
    assert (job.status, job.total) == ("done", 8), job.error
    whole = run_edit(engine, "variations", request, lane="bulk")  # type: ignore[arg-type]
    with zipfile.ZipFile(jobs.result(ALICE, job.id)[1]) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(f"{i:06d}.png")))) for i in range(8)]
    assert np.abs(np.stack(images)[:, None].astype(int) - to_uint8(whole.images).numpy()).max() <= 1
    assert manifest["kind"] == "variations"
    assert manifest["sigmas"] == whole.sigmas
    assert manifest["seed"] == 3
    assert EXAMPLE_PICTURE not in json.dumps(manifest), "pictures are not told on"


def test_bad_requests_are_refused_before_they_are_accepted(make: Make) -> None:
    jobs, _ = make(max_job_images=1000)
    for request, status, text in (
        (GenerateRequest(n=1001), 413, "1,001 images are asked for, one job may have 1,000"),
        (GenerateRequest(n=2, seeds=[1]), 400, "1 seeds are given for 2 images"),
        (GenerateRequest(n=2, labels=3), 400, "this model is unconditional"),
        (GenerateRequest(n=2, steps=500), 400, "steps asks for 500"),
        (GenerateRequest(n=2, model="other"), 404, "no model 'other'"),
        (GenerateRequest(n=2, version="9"), 404, "no version '9'"),
    ):
        with pytest.raises(ServiceError, match=text) as caught:
            jobs.submit(ALICE, "generate", request)
        assert caught.value.status == status
    with pytest.raises(ServiceError) as caught:
        jobs.submit(ALICE, "variations", VariationsRequest(image="bm90IGEgcGljdHVyZQ=="))
    assert caught.value.status == 400
    assert jobs.counts() == {}


def test_each_key_sees_its_own_jobs_and_an_admin_all(make: Make) -> None:
    jobs, _ = make()
    mine, other = ask(jobs, 10), ask(jobs, 10, who=BOB)
    ended(jobs, mine)
    assert [job.id for job in jobs.list(ALICE)] == [mine.id]
    assert [job.id for job in jobs.list(BOB)] == [other.id]
    assert {job.id for job in jobs.list(ADMIN)} == {mine.id, other.id}
    for call in (jobs.get, jobs.cancel, jobs.result):
        with pytest.raises(ServiceError) as caught:
            call(BOB, mine.id)
        assert caught.value.status == 404
    for strange in ("job_x", "../../etc", "job_" + "0" * 24, "", "a\0b"):
        with pytest.raises(ServiceError) as caught:
            jobs.get(ADMIN, strange)
        assert caught.value.status == 404


def test_the_same_word_gives_the_same_job(make: Make) -> None:
    jobs, _ = make()
    paid: list[int] = []
    send = lambda n, who=ALICE: jobs.submit(who, "generate", GenerateRequest(n=n), idempotency="word", charge=paid.append)
    job, new = send(10)
    again, newly = send(10)
    assert (new, newly, again.id) == (True, False, job.id)
    assert paid == [10], "a retry costs nothing"
    with pytest.raises(ServiceError, match="used for another request") as caught:
        send(11)
    assert caught.value.status == 409
    assert caught.value.param == "Idempotency-Key"
    assert send(11, BOB)[0].id != job.id


def test_a_charge_that_is_refused_leaves_no_job(make: Make) -> None:
    jobs, _ = make()

    def refuse(images: int) -> None:
        raise ServiceError(429, "rate_limited", f"{images} are too many", retry_after=3)

    with pytest.raises(ServiceError, match="12 are too many"):
        jobs.submit(ALICE, "generate", GenerateRequest(n=12), charge=refuse)
    assert jobs.counts() == {}


def test_one_key_may_have_so_many_jobs(make: Make) -> None:
    jobs, _ = make(job_workers=0, max_jobs=2)
    first = ask(jobs, 10)
    ask(jobs, 10)
    with pytest.raises(ServiceError, match="2 of your jobs wait or run, which is the limit") as caught:
        ask(jobs, 10)
    assert (caught.value.status, caught.value.code) == (429, "too_many_jobs")
    assert caught.value.retry_after
    ask(jobs, 10, who=BOB)
    jobs.cancel(ALICE, first.id)
    ask(jobs, 10)


def test_a_waiting_job_is_cancelled_at_once_a_running_one_within_its_part(make: Make, tmp_path: Path) -> None:
    jobs, engine = make(delay=0.02)
    running, waiting = ask(jobs, 2000), ask(jobs, 2000, 8)
    until(lambda: jobs.get(ALICE, running.id).done > 0)
    assert jobs.cancel(ALICE, waiting.id).status == "cancelled"
    begun = time.monotonic()
    assert jobs.cancel(ALICE, running.id).status == "cancelling"
    job = ended(jobs, running)
    assert job.status == "cancelled"
    assert job.file is None
    assert time.monotonic() - begun < 5.0 < 2000 * 0.02
    until(lambda: not (tmp_path / "jobs" / job.id).exists())
    assert jobs.cancel(ALICE, running.id).status == "cancelled", "again changes nothing"
    assert {seed for seed, _, _ in engine.asked} == {7}
    with pytest.raises(ServiceError) as caught:
        jobs.result(ALICE, job.id)
    assert caught.value.status == 409
    assert ended(jobs, ask(jobs, 20, 9)).status == "done", "the next one runs"


def test_a_running_edit_is_cancelled_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, engine = make()
    forward = type(engine.model).forward
    monkeypatch.setattr(type(engine.model), "forward", lambda *a, **k: (time.sleep(0.05), forward(*a, **k))[1])
    job, _ = jobs.submit(ALICE, "variations", VariationsRequest(image=EXAMPLE_PICTURE, n=600, steps=20, seed=1))
    until(lambda: jobs.get(ALICE, job.id).done > 0)
    jobs.cancel(ALICE, job.id)
    assert ended(jobs, job).status == "cancelled"


def test_progress_has_a_rate_and_a_time_left(make: Make) -> None:
    jobs, _ = make(delay=0.004)
    job = ask(jobs, 1024)
    with pytest.raises(ServiceError, match="of 1024 images are done") as caught:
        jobs.result(ALICE, job.id)
    assert caught.value.status == 409
    assert caught.value.retry_after
    seen = []
    while not (now := jobs.get(ALICE, job.id)).ended:
        seen.append(now)
        time.sleep(0.05)
    running = [now for now in seen if now.status == "running" and now.done]
    assert [now.done for now in running] == sorted(now.done for now in running)
    assert any(0 < now.done < 256 for now in running), "also within a part"
    assert all(now.rate is not None and 0 < now.rate < 300 for now in running)
    assert any(now.left is not None and 0 < now.left < 60 for now in running)


def test_parts_cover_all_images_once() -> None:
    for n, values, most in ((1, 64, 256), (256, 64, 256), (257, 64, 256), (1000, 3 * 512 * 512, 256), (7, 1 << 23, 256)):
        cells = cut(n, values, most)
        assert [place for cell in cells for place in cell] == list(range(n))
        assert max(map(len, cells)) * values <= max(1 << 22, values)


def test_the_mark_of_a_folder_is_one(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        marks = list(pool.map(lambda _: JobFiles(tmp_path / "jobs").mark(), range(16)))
    assert len(set(marks)) == 1
    assert len(marks[0]) == 32
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [".place"]


def test_a_manifest_tells_labels_of_models_with_classes() -> None:
    from atonce.serving.generate import ask_of
    from atonce.serving.job_work import about_generate, part_of

    model = atonce.load("fashion-mnist")
    drawn = ask_of(model, GenerateRequest(n=20, seed=3, first=5))
    about = about_generate(model, drawn, "fashion-mnist", "1")
    part = about_generate(model, part_of(drawn, range(7, 20)), "fashion-mnist", "1")
    assert list(about.labels)[7:] == list(part.labels)
    assert len(set(about.labels)) > 1
    given = ask_of(model, GenerateRequest(labels=["bag", "coat", "bag"], seed=3))
    assert list(about_generate(model, given, "m", "1").labels) == [model.labels.index(x) for x in ("Bag", "Coat", "Bag")]
    assert part_of(given, range(1, 3)).labels == given.labels[1:]
    one = replace(given, labels=given.labels[:1])
    assert part_of(one, range(1, 3)).labels == one.labels
