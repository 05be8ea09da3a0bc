"""The service under load: ``python benchmarks/serving.py load | overload | soak | report``.

    load        images a second through the interface against the bare batched model, measured in turn beside the same load
                generator; and the time that encoding takes
    overload    four times what the service can do, and how long it takes to recover
    soak        30 minutes of mixed traffic, and the memory of the process (--minutes M for another time)
    report      docs/serving-load.md and its picture from what was measured

All traffic stays on loopback. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import RECORDS, ROOT
from run import machine

FOLDER = RECORDS / "serving"
MODEL = "fashion-mnist"
HERE = Path(__file__).resolve().parent
CLIENTS, N = 32, 4  # of the closed loop: two full network calls are on their way
PROMISE = 2.0  # seconds: queue_seconds of the service


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(model: str, **settings: Any) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A served model: its address, and the process."""
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        values = {"port": port, "state": state, "queue_seconds": PROMISE, "rate": "none", "log_level": "error"} | settings
        environment = os.environ | {f"ATONCE_SERVE_{name.upper()}": str(value) for name, value in values.items()}
        process = subprocess.Popen([sys.executable, "-m", "atonce", "serve", model], env=environment, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            while not answers(f"{url}/readyz"):
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode}")
                time.sleep(0.2)
            yield url, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def answers(url: str) -> bool:
    """Whether an address answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def generator(url: str, seconds: float, **options: Any) -> subprocess.Popen[bytes]:
    """Start the load generator; :func:`seen` waits for what it saw."""
    words = [sys.executable, str(HERE / "serving_load.py"), url, "--seconds", str(seconds)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def seen(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a load generator saw."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load generator ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def bare_beside(canned: Path, batch: int, form: str, seconds: float, rate: float, threads: int) -> dict[str, Any]:
    """The bare model, while the load generator talks to something that answers from memory at the rate of the service."""
    port = free_port()
    script = str(HERE / "serving_bare.py")
    echo = subprocess.Popen([sys.executable, script, "--canned", str(canned), "--port", str(port)])
    words = [sys.executable, script, MODEL, "--batch", str(batch), "--form", form, "--seconds", str(seconds)]
    words += ["--threads", str(threads)]
    model = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert model.stdout is not None
        assert model.stdin is not None
        model.stdout.readline()  # it is ready
        load = generator(f"http://127.0.0.1:{port}", seconds + 4, clients=CLIENTS, n=N, pace=rate)
        time.sleep(2)
        model.stdin.write(b"go\n")
        model.stdin.flush()
        found: dict[str, Any] = json.loads(model.stdout.readline())
        beside = seen(load)
        return found | {"requests/s beside": beside["requests/s"]}
    finally:
        model.kill()
        echo.kill()
        model.wait()
        echo.wait()


def encode_seconds(url: str, form: str) -> tuple[float, float]:
    """Seconds spent with encoding so far, and images encoded, by the service's own metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line and line[0] != "#"}
    spent = sum(value for name, value in values.items() if name.startswith("atonce_encode_seconds_sum") and form in name)
    count = sum(value for name, value in values.items() if name.startswith("atonce_encode_seconds_count") and form in name)
    return spent, count


def load(rounds: int, seconds: float) -> None:
    """Measure throughput against the bare model, in turn."""
    threads = os.cpu_count() or 1
    with server(MODEL, backend="eager", threads=threads) as (url, _), tempfile.TemporaryDirectory() as scratch:
        body = json.dumps({"n": N, "seed": 0, "format": "npz", "response": "binary"}).encode()
        ask = urllib.request.Request(f"{url}/v1/generate", body, {"Content-Type": "application/json"})
        canned = Path(scratch, "answer")
        with urllib.request.urlopen(ask, timeout=60) as answer:
            canned.write_bytes(answer.read())
        alone = seen(generator(url, 8, clients=1, n=1))
        seen(generator(url, 4, clients=CLIENTS, n=N))
        turns: list[dict[str, Any]] = []
        for turn in range(rounds):
            served = seen(generator(url, seconds, clients=CLIENTS, n=N))
            bare = [
                bare_beside(canned, batch, form, seconds / 2, served["requests/s"], threads)
                for form in ("plain", "service")
                for batch in (16, 64)
            ]
            best = {each["form"]: each["images/s"] for each in sorted(bare, key=lambda each: each["images/s"])}
            turns.append({"served": served, "bare": bare} | {form: served["images/s"] / rate for form, rate in best.items()})
            told = ", ".join(f"{rate:.1f} ({form})" for form, rate in best.items())
            print(f"turn {turn + 1}/{rounds}: {served['images/s']:.1f} images/s; bare {told}", file=sys.stderr)
        before = encode_seconds(url, "png")
        pictures = seen(generator(url, seconds, clients=CLIENTS, n=N, form="png"))
        spent, count = (b - a for a, b in zip(before, encode_seconds(url, "png"), strict=True))
    ratios = {form: sorted(turn[form] for turn in turns) for form in ("plain", "service")}
    record = {
        "model": MODEL,
        "clients": CLIENTS,
        "images of a request": N,
        "alone, n=1": alone,
        "turns": turns,
        "ratio": {form: {"median": statistics.median(all), "least": all[0], "most": all[-1]} for form, all in ratios.items()},
        "png": pictures | {"encoding seconds of a request": spent / count if count else None},
    }
    with server(MODEL, threads=threads) as (url, _):
        with urllib.request.urlopen(f"{url}/v1/models/{MODEL}", timeout=10) as answer:
            chosen = json.loads(answer.read()).get("backend")
        record["backend chosen by itself"] = {"name": chosen} | seen(generator(url, seconds, clients=CLIENTS, n=N))
    keep("load", record)


def overload(seconds: float) -> None:
    """Ask for four times what the service can do; then see how soon it answers as before."""
    with server(MODEL, backend="eager", connections=2048) as (url, _):
        seen(generator(url, 4, clients=CLIENTS, n=N))
        capacity = seen(generator(url, 10, clients=CLIENTS, n=N))
        before = seen(generator(url, 6, clients=1, n=1))
        rate = 4 * capacity["images/s"] / N
        flood = seen(generator(url, seconds, clients=1500, n=N, rate=rate))
        end = time.perf_counter()
        good = 0
        while good < 3 and time.perf_counter() - end < 60:  # three prompt answers in a row
            start = time.perf_counter()
            body = json.dumps({"n": 1, "seed": 1}).encode()
            ask = urllib.request.Request(f"{url}/v1/generate", body, {"Content-Type": "application/json"})
            try:
                urllib.request.urlopen(ask, timeout=30).read()
                prompt = time.perf_counter() - start < 2 * before["seconds"]["p99"] + 0.05
            except urllib.error.HTTPError:
                prompt = False
            good = good + 1 if prompt else 0
        recovered = time.perf_counter() - end
    keep(
        "overload",
        {
            "capacity": capacity,
            "alone, n=1": before,
            "asked, requests/s": rate,
            "flood": flood,
            "recovered after, s": recovered,
        },
    )


def resident(pid: int) -> dict[str, float]:
    """Memory, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "MiB": float(status["VmRSS"].split()[0]) / 1024,
        "threads": float(status["Threads"]),
        "files": float(len(os.listdir(f"/proc/{pid}/fd"))),
    }


def soak(minutes: float) -> None:
    """Mixed traffic at a bit more than half of what the service can do, for long."""
    from serving_bodies import mixed

    with server(MODEL, max_batch=16) as (url, process), tempfile.TemporaryDirectory() as scratch:
        bodies = Path(scratch, "bodies.json")
        bodies.write_text(json.dumps(mixed(MODEL)))
        capacity = seen(generator(url, 15, clients=16, n=2, bodies=bodies))
        start, points = time.monotonic(), []
        traffic = generator(url, minutes * 60, clients=16, n=2, bodies=bodies, pace=0.6 * capacity["requests/s"])
        while traffic.poll() is None:
            points.append({"seconds": time.monotonic() - start} | resident(process.pid))
            time.sleep(min(10.0, minutes * 6))
        record = {"minutes": minutes, "capacity": capacity, "traffic": seen(traffic), "points": points[:-1]}
    keep("soak", record | {"growth": growth(record["points"])})


def growth(points: list[dict[str, float]]) -> dict[str, float]:
    """The slope of memory over the last two thirds, MiB an hour, with its standard error, and the largest value."""
    from scipy.stats import linregress

    kept = points[len(points) // 3 :]
    fit = linregress([each["seconds"] / 3600 for each in kept], [each["MiB"] for each in kept])
    return {
        "MiB an hour": float(fit.slope),
        "standard error": float(fit.stderr),
        "first MiB": kept[0]["MiB"],
        "last MiB": kept[-1]["MiB"],
        "most MiB": max(each["MiB"] for each in points),
    }


def keep(name: str, record: dict[str, Any]) -> None:
    """Write a record."""
    from atonce.core.records import commit, versions

    FOLDER.mkdir(parents=True, exist_ok=True)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"machine": machine(), "commit": commit(), "versions": versions(), "created": created}
    (FOLDER / f"{name}.json").write_text(json.dumps(record | facts, indent=1) + "\n")
    print(f"wrote {(FOLDER / f'{name}.json').relative_to(ROOT)}", file=sys.stderr)


def main() -> None:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["load", "overload", "soak", "report"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    if options.action == "load":
        load(options.rounds, options.seconds)
    elif options.action == "overload":
        overload(options.seconds)
    elif options.action == "soak":
        soak(options.minutes)
    else:
        from serving_report import write

        write()


if __name__ == "__main__":
    main()
