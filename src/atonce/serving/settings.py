"""What a service owner can set: by the command line, by ATONCE_SERVE_* variables, or from Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class ServeSettings(BaseSettings):
    """Settings of one server process. Every field can come from the environment, as ``ATONCE_SERVE_`` and its name."""

    model_config = SettingsConfigDict(env_prefix="ATONCE_SERVE_", env_ignore_empty=True, frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(
        (), description="What to serve: NAME=SOURCE or SOURCE; a source is a registry entry or what atonce.load takes"
    )
    host: str = Field("127.0.0.1", description="Address to listen on; any other than loopback needs keys")
    port: int = Field(8000, ge=0, le=65535)
    state: Path = Field(Path("serve-state"), description="Folder for jobs, results and the audit log")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(None, ge=1, description="Threads of one network call on the CPU; default: all cores")

    # the queue
    max_batch: int = Field(64, ge=1, le=4096, description="Rows of one network call")
    queue_seconds: float = Field(2.0, gt=0, description="Longest time a request may wait; beyond it, requests are refused")
    queue_rows: int = Field(4096, ge=1, description="Rows that may wait, whatever the time")
    request_seconds: float = Field(60.0, gt=0, description="Longest time of one request")
    drain_seconds: float = Field(20.0, ge=0, description="Time to finish what was accepted after SIGTERM")
    backend: Literal["auto", "eager", "compiled", "openvino", "openvino-bf16"] = "auto"
    edit_threads: int = Field(8, ge=1, le=256, description="Edits that run at once")

    # what one request may ask
    max_images: int = Field(64, ge=1, description="Images of one direct request; more are for jobs")
    max_job_images: int = Field(100_000, ge=1)
    max_steps: int = Field(100, ge=1, description="Intervals of one request")
    max_body: int = Field(16 * MIB, ge=1024, description="Bytes of one request")
    max_pixels: int = Field(4096 * 4096, ge=1, description="Pixels of an uploaded picture before it is decoded")
    max_side: int = Field(8192, ge=1, description="Height or width of an uploaded picture")
    header_seconds: float = Field(10.0, gt=0, description="Time for the headers of a request to arrive")
    body_seconds: float = Field(20.0, gt=0, description="Time for the body of a request to arrive")
    connections: int = Field(512, ge=1, description="Connections at once")

    # who may ask
    keys: Path | None = Field(None, description="File of hashed API keys (atonce serve keys)")
    public_without_keys: bool = Field(False, description="Listen on a public address although there are no keys")
    rate: str = Field("600/minute", description="Requests of one key, or of one address without keys; none for no limit")
    image_rate: str = Field("", description="Images of one key, e.g. 10000/hour; none for no limit")
    redis: str | None = Field(None, description="redis:// address where limits are counted for all replicas together")
    cors_origins: tuple[str, ...] = Field((), description="Origins of browsers that may call; none by default")
    trusted_proxies: tuple[str, ...] = Field((), description="Addresses whose X-Forwarded-For, -Proto and -Host are believed")
    link_secret: str | None = Field(None, description="Secret that signs links to images; the same on all replicas")
    link_seconds: float = Field(3600.0, gt=0, description="How long such a link works")
    public_url: str | None = Field(
        None, description="Address at which callers reach this server; links to images begin with it"
    )

    # the studio
    studio: bool = Field(False, description="Put the studio at /studio: a page where people generate, edit, compare and train")
    runs: Path = Field(Path("runs"), description="Folder where the studio writes and lists trainings")
    records: tuple[Path, ...] = Field((), description="Folders and files with records that the studio draws")
    studio_upload: int = Field(256 * MIB, ge=1024, description="Bytes of one upload into the studio")

    # jobs
    jobs: str | None = Field(None, description="Database of jobs, default: SQLite in the state folder")
    job_workers: int = Field(1, ge=0, le=64, description="Jobs that run at once in this process")
    job_lease: float = Field(15.0, gt=0, description="Seconds of silence after which another process takes a job over")
    job_keep: float = Field(7 * 86400.0, gt=0, description="Seconds that results are kept")
    max_jobs: int = Field(1000, ge=1, description="Jobs of one key that may wait or run")

    # what is watched
    metrics: bool = Field(True, description="Serve /metrics")
    metrics_open: bool | None = Field(
        None, description="Serve /metrics without a key; default: where there are no keys, or only this machine can connect"
    )
    health_open: bool | None = Field(None, description="Show the details of /healthz without a key; default: likewise")
    watch_seconds: float = Field(0.0, ge=0, description="Seconds between rounds of the quality watch; 0 for none")
    watch_images: int = Field(512, ge=64, description="Images of one round")
    otlp: str | None = Field(None, description="OpenTelemetry collector, e.g. http://collector:4318")
    log: Literal["json", "text"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # versions
    reload_seconds: float = Field(10.0, ge=0, description="Seconds between looks for a new version; 0 for none")
    canary_share: float = Field(0.0, ge=0, le=1, description="Share of callers that get a new version first; 0: all at once")
    canary_seconds: float = Field(600.0, gt=0, description="Time after which a canary without faults becomes stable")

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._~/-]*)?", value):
            raise ValueError("an address like https://images.example.org, with http or https and without ? or #")
        return None if value is None else value.rstrip("/")

    @field_validator("rate", "image_rate")
    @classmethod
    def _no_limit(cls, value: str) -> str:
        return "" if value.strip().lower() == "none" else value
