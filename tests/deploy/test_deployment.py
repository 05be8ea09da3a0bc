"""The deployment files, checked without a cluster or a container engine: schemas, and that they fit the service they start."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="the files are read with pyyaml (extra dev)")
pytest.importorskip("pydantic_settings", reason="settings need the extra serve")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
K8S = sorted((DEPLOY / "k8s").glob("*.yaml"))
NOT_OBJECTS = ("kustomization.yaml", "adapter-rule.yaml")


def objects() -> list[dict[str, Any]]:
    """Everything that is applied to a cluster."""
    return [each for path in K8S if path.name not in NOT_OBJECTS for each in yaml.safe_load_all(path.read_text()) if each]


def named(kind: str, name: str) -> dict[str, Any]:
    """One object."""
    return next(each for each in objects() if each["kind"] == kind and each["metadata"]["name"] == name)


def compose() -> dict[str, Any]:
    """The compose file."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    return found


def script(name: str) -> str:
    """A tool of this environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed (extra dev)")
    return str(path)


# ---- schemas


@pytest.mark.parametrize("manifest", objects(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_manifests_fit_the_schema_of_the_cluster(manifest: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the schemas come with kubernetes-validate (extra dev)")
    validate.validate(manifest, "1.33", strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate(manifest | {"metadata": {"name": ["not", "a", "name"]}}, "1.33", strict=True)


def test_the_kustomization_builds_and_leaves_no_file_out() -> None:
    listed = yaml.safe_load((DEPLOY / "k8s" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == [path.name for path in K8S if path.name not in NOT_OBJECTS]
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(DEPLOY / "k8s")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert len(built) == len(objects())
    assert all(each["metadata"].get("namespace") == "atonce" for each in built if each["kind"] != "Namespace")


def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    tool = [script("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*tool, str(DEPLOY / "compose.yml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "compose.yml"
    wrong.write_text(yaml.safe_dump(compose() | {"services": {"atonce": {"imaeg": "x"}}}))
    assert subprocess.run([*tool, str(wrong)], capture_output=True, timeout=60).returncode == 1


def test_the_dockerfile_has_no_findings(tmp_path: Path) -> None:
    tool = script("hadolint")
    done = subprocess.run([tool, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && pip install torch\n")
    assert subprocess.run([tool, str(wrong)], capture_output=True, timeout=60).returncode == 1


# ---- that they fit the service


def test_the_image_runs_as_nobody_special_from_files_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert "latest" not in text
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for word in line.split()[:-1]]
    assert sources
    assert all((ROOT / word).exists() for word in sources)
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(sources)
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert torch.strip() == torch
    assert ";" not in torch
    metadata = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r'install -c constraints.txt "\.\[(.+)\]"', text)
    assert extras is not None
    assert all(re.search(rf"^{extra} = \[", metadata, re.M) for extra in extras.group(1).split(","))


def test_every_variable_is_a_setting_of_the_service() -> None:
    from atonce.serving.settings import ServeSettings

    known = {f"ATONCE_SERVE_{name.upper()}" for name in ServeSettings.model_fields}
    files = [DEPLOY / "Dockerfile", DEPLOY / "compose.yml", *K8S]
    used = {name for path in files for name in re.findall(r"ATONCE_SERVE_[A-Z_]+", path.read_text())}
    assert used
    assert not used - known


def test_the_configured_values_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from atonce.serving.settings import ServeSettings

    for given in (named("ConfigMap", "atonce")["data"], compose()["services"]["atonce"]["environment"]):
        with monkeypatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, re.sub(r"\$\{.*\}", "", value))
            settings = ServeSettings()
        assert settings.redis == "redis://redis:6379/0"
        assert settings.link_secret is None  # an empty variable counts as none


def test_there_is_time_to_drain() -> None:
    from atonce.serving.settings import ServeSettings

    drain = float(named("ConfigMap", "atonce")["data"]["ATONCE_SERVE_DRAIN_SECONDS"])
    pod = named("Deployment", "atonce")["spec"]["template"]["spec"]
    pause = re.search(r"sleep\((\d+)\)", pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pause is not None
    assert pod["terminationGracePeriodSeconds"] > drain + int(pause.group(1))
    grace = compose()["services"]["atonce"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > ServeSettings().drain_seconds


def test_ports_and_probes_are_the_services() -> None:
    from atonce.serving.settings import ServeSettings

    port = ServeSettings().port
    pod = named("Deployment", "atonce")["spec"]["template"]["spec"]["containers"][0]
    assert pod["ports"] == [{"name": "http", "containerPort": port}]
    assert f"EXPOSE {port}\n" in (DEPLOY / "Dockerfile").read_text()
    assert f":{port}/livez" in (DEPLOY / "Dockerfile").read_text()
    assert compose()["services"]["atonce"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    probes = {pod[each]["httpGet"]["path"] for each in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"/livez", "/readyz"}
    assert pod["livenessProbe"]["httpGet"]["path"] == "/livez"  # a busy or draining process is not killed


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert re.search(r":(?!latest$)[\w.-]+$", service["image"]), name
    for name in ("atonce", "redis"):
        pod = named("Deployment", name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_selectors_find_their_pods() -> None:
    labels = {name: named("Deployment", name)["spec"]["template"]["metadata"]["labels"] for name in ("atonce", "redis")}
    for name, found in labels.items():
        assert named("Service", name)["spec"]["selector"].items() <= found.items()
        assert named("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= found.items()
        assert named("Deployment", name)["spec"]["selector"]["matchLabels"].items() <= found.items()
    assert named("PodDisruptionBudget", "atonce")["spec"]["selector"]["matchLabels"].items() <= labels["atonce"].items()
    assert named("HorizontalPodAutoscaler", "atonce")["spec"]["scaleTargetRef"]["name"] == "atonce"
    mounts = {
        each["name"] for each in named("Deployment", "atonce")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    assert mounts == {each["name"] for each in named("Deployment", "atonce")["spec"]["template"]["spec"]["volumes"]}


@pytest.mark.skipif(importlib.util.find_spec("prometheus_client") is None, reason="metrics need the extra serve")
def test_the_autoscaler_looks_at_metrics_that_exist() -> None:
    from atonce.serving.metrics import Metrics

    asked = named("HorizontalPodAutoscaler", "atonce")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    rule = yaml.safe_load((DEPLOY / "k8s" / "adapter-rule.yaml").read_text())[0]
    assert rule["name"]["as"] == asked
    series = rule["seriesQuery"].partition("{")[0]
    used = {series, *re.findall(r"atonce_\w+", rule["metricsQuery"])}
    assert used == {"atonce_queue_expected_seconds", "atonce_queue_promise_seconds"}
    metrics = Metrics()
    metrics.attach(statuses=list, jobs=dict, ready=lambda: True)
    text = metrics.text()[0].decode()
    assert all(f"# TYPE {name} gauge" in text for name in used)


# ---- a backend, and models of a registry


def test_the_backend_is_named_so_that_replicas_agree() -> None:
    for given in (named("ConfigMap", "atonce")["data"], compose()["services"]["atonce"]["environment"]):
        assert given["ATONCE_SERVE_BACKEND"] == "eager"


def test_prometheus_may_read_the_metrics() -> None:
    """The service listens on a public address with keys, where metrics want a key of their own unless told otherwise."""
    for given in (named("ConfigMap", "atonce")["data"], compose()["services"]["atonce"]["environment"]):
        assert given["ATONCE_SERVE_METRICS_OPEN"] == "true"


def test_every_volume_that_is_mounted_is_used() -> None:
    service = compose()["services"]["atonce"]
    assert not any("registry" in volume for volume in service["volumes"])
    over = yaml.safe_load((DEPLOY / "compose.registry.yml").read_text())["services"]["atonce"]
    (volume,) = over["volumes"]
    place = volume.split(":")[1]
    assert all(word.startswith(f"{place}/") for word in over["command"][1:])
    folder = {path.name: yaml.safe_load(path.read_text()) for path in (DEPLOY / "k8s-registry").glob("*.yaml")}
    build = folder.pop("kustomization.yaml")
    assert sorted([*build["resources"], *(each["path"] for each in build["patches"])]) == sorted(["../k8s", *folder])
    pod = folder["deployment.yaml"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    base = named("Deployment", "atonce")
    assert folder["deployment.yaml"]["metadata"]["name"] == base["metadata"]["name"]
    assert container["name"] == base["spec"]["template"]["spec"]["containers"][0]["name"]
    (mount,) = container["volumeMounts"]
    assert all(word.startswith(f"{mount['mountPath']}/") for word in container["args"][1:])
    assert pod["volumes"] == [
        {"name": mount["name"], "persistentVolumeClaim": {"claimName": folder["volume.yaml"]["metadata"]["name"]}}
    ]
    assert folder["configmap.yaml"]["metadata"]["name"] == named("ConfigMap", "atonce")["metadata"]["name"]


def test_canaries_outlast_rounds_of_the_quality_watch() -> None:
    from atonce.serving.settings import ServeSettings

    known = {f"ATONCE_SERVE_{name.upper()}" for name in ServeSettings.model_fields}
    watch = float(named("ConfigMap", "atonce")["data"]["ATONCE_SERVE_WATCH_SECONDS"])
    over = yaml.safe_load((DEPLOY / "k8s-registry" / "configmap.yaml").read_text())["data"]
    also = yaml.safe_load((DEPLOY / "compose.registry.yml").read_text())["services"]["atonce"]["environment"]
    assert over == also
    assert set(over) <= known
    assert float(over["ATONCE_SERVE_CANARY_SECONDS"]) > 2 * watch


def test_the_registry_overlays_fit_their_schemas() -> None:
    tool = [script("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*tool, str(DEPLOY / "compose.registry.yml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    validate = pytest.importorskip("kubernetes_validate", reason="the schemas come with kubernetes-validate (extra dev)")
    for name in ("volume.yaml", "configmap.yaml"):
        validate.validate(yaml.safe_load((DEPLOY / "k8s-registry" / name).read_text()), "1.33", strict=True)
