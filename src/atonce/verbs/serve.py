"""The verb ``serve``."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from atonce.core.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from atonce.serving.settings import ServeSettings


def serve(
    models: Positional[tuple[str, ...]] = (),
    host: str | None = None,
    port: int | None = None,
    state: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    backend: Literal["auto", "eager", "compiled", "openvino", "openvino-bf16"] | None = None,
    max_batch: int | None = None,
    queue_seconds: float | None = None,
    queue_rows: int | None = None,
    request_seconds: float | None = None,
    drain_seconds: float | None = None,
    edit_threads: int | None = None,
    max_images: int | None = None,
    max_job_images: int | None = None,
    max_steps: int | None = None,
    max_body: int | None = None,
    max_pixels: int | None = None,
    max_side: int | None = None,
    connections: int | None = None,
    keys: Path | None = None,
    public_without_keys: bool = False,
    rate: str | None = None,
    image_rate: str | None = None,
    redis: str | None = None,
    cors_origins: tuple[str, ...] = (),
    trusted_proxies: tuple[str, ...] = (),
    public_url: str | None = None,
    metrics_open: bool = False,
    health_open: bool = False,
    jobs: str | None = None,
    job_workers: int | None = None,
    watch_seconds: float | None = None,
    watch_images: int | None = None,
    otlp: str | None = None,
    log: Literal["json", "text"] | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    reload_seconds: float | None = None,
    canary_share: float | None = None,
    canary_seconds: float | None = None,
    studio: bool = False,
    runs: Path | None = None,
    records: tuple[Path, ...] = (),
    studio_upload: int | None = None,
    json: bool = False,
) -> int:
    """Put models behind an HTTP interface: generation, every edit, jobs, OpenAI's images API, metrics.

    Example: atonce serve digits fashion-mnist --port 8000

    Then, for example: curl -s localhost:8000/v1/generate -H 'Accept: image/png' --json '{"n": 16, "seed": 7}' -o digits.png

    Every option can also be set by the environment, as ATONCE_SERVE_ and its name in capitals (ATONCE_SERVE_PORT=8000); what is
    given here goes first. ATONCE_SERVE_LINK_SECRET, which belongs into no list of processes, can be set there only. SIGTERM and
    Ctrl-C stop the server after what was accepted is finished.

    Args:
        models: What to serve: gallery names, run folders, model folders, hub ids or registry entries, as SOURCE or NAME=SOURCE.
        host: Address to listen on, default 127.0.0.1; any other than loopback needs keys.
        port: Default 8000; 0 takes a free one.
        state: Folder for jobs, results and the audit log; default serve-state.
        device: auto, cpu, cuda or cuda:N.
        threads: Threads of one network call on the CPU; default all cores.
        backend: What runs the network; auto measures at the start.
        max_batch: Rows of one network call; default 64.
        queue_seconds: Longest time a request may wait; beyond it, requests are refused. Default 2.
        queue_rows: Rows that may wait, whatever the time; default 4096.
        request_seconds: Longest time of one request; default 60.
        drain_seconds: Time to finish what was accepted after SIGTERM; default 20.
        edit_threads: Edits that run at once; default 8.
        max_images: Images of one direct request; default 64, more are for jobs.
        max_job_images: Images of one job; default 100000.
        max_steps: Network calls for each image; default 100.
        max_body: Bytes of one request; default 16 MiB.
        max_pixels: Pixels of an uploaded picture; default 4096 x 4096.
        max_side: Height or width of an uploaded picture; default 8192.
        connections: Connections at once; default 512.
        keys: File of hashed API keys (atonce serve keys make).
        public_without_keys: Listen on a public address although there are no keys.
        rate: Requests of one key, or of one address without keys; default 600/minute, none for no limit.
        image_rate: Images of one key, for example 10000/hour; default none.
        redis: redis:// address where limits are counted for all replicas together.
        cors_origins: Origins of browsers that may call; default none.
        trusted_proxies: Addresses whose X-Forwarded-For, -Proto and -Host are believed.
        public_url: Address at which callers reach this server, for example https://images.example.org; links begin with it.
        metrics_open: Serve /metrics without a key, also where there are keys and other machines can connect.
        health_open: Show the details of /healthz without a key there too; without them it says one word.
        jobs: Database of jobs, sqlite:///FILE or postgresql://...; default SQLite in the state folder.
        job_workers: Jobs that run at once in this process; default 1.
        watch_seconds: Seconds between rounds of the quality watch; default 0 for none.
        watch_images: Images of one round; default 512.
        otlp: OpenTelemetry collector, for example http://collector:4318.
        log: json or text.
        log_level: debug, info, warning or error.
        reload_seconds: Seconds between looks for a new version in the registry; default 10, 0 for none.
        canary_share: Share of callers that get a new version first; default 0, all at once.
        canary_seconds: Time after which a canary without faults becomes stable; default 600.
        studio: Put the studio at /studio, a page for people.
        runs: Folder where the studio writes and lists trainings; default runs.
        records: Folders and files with records that the studio draws; default benchmarks/records where it is.
        studio_upload: Bytes of one upload into the studio; default 256 MiB.
        json: Print the address as one line of JSON when the server is ready.

    Returns:
        The exit status.

    Raises:
        InputError: A setting cannot be used, or there is nothing to serve.
        MissingExtraError: The packages of the service are not installed.
    """
    said = {name: value for name, value in locals().items() if name != "json"}
    given = {name: value for name, value in said.items() if value is not None and value is not False and value != ()}
    settings = settings_of(given)
    from atonce.serving.run import serve as run

    if not settings.models:
        raise InputError("there is nothing to serve: name a model, for example atonce serve digits")
    if settings.studio:
        from atonce.studio.mount import mount

        return run(settings, _as_json if json else None, mount)
    return run(settings, _as_json if json else None)


def settings_of(given: dict[str, Any]) -> ServeSettings:
    """Settings of a server: what is given, then the environment, then defaults.

    Args:
        given: By name.

    Returns:
        The settings.

    Raises:
        InputError: One cannot be used; the message names its option.
        MissingExtraError: The packages of the service are not installed.
    """
    try:
        from pydantic import ValidationError

        from atonce.serving.settings import ServeSettings
    except ModuleNotFoundError as problem:
        raise MissingExtraError(f"serving needs the package {problem.name}: pip install 'atonce[serve]'") from problem
    try:
        return ServeSettings(**given)
    except ValidationError as problem:
        fault = problem.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else "a setting"
        text = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise InputError(f"{name} is {fault['input']!r}, should be {text} (--{name.replace('_', '-')})") from problem
    except ValueError as problem:  # of a variable that cannot be read
        raise InputError(f"a variable ATONCE_SERVE_... cannot be read: {problem}") from problem


def _as_json(address: str) -> str:
    return json_text.dumps({"url": address})
