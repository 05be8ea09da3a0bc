"""Alerts and dashboards: they use what the service shows, each alert fires when it must, and a real Prometheus takes them."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atonce.serving.metrics import Metrics
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.watch_statistics import STATISTICS, Reading

yaml = pytest.importorskip("yaml", reason="the files are YAML: pip install pyyaml")
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS, TESTS = DEPLOY / "prometheus" / "alerts.yml", DEPLOY / "prometheus" / "alerts_test.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
FROM_PROMETHEUS = {"instance", "job"}
OTHERS: dict[str, set[str]] = {
    "up": set(),
    "ALERTS": {"alertname", "alertstate", "severity"},
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
    "process_open_fds": set(),
    "process_max_fds": set(),
    "process_start_time_seconds": set(),
}
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [*dashboard["panels"], *(inner for panel in dashboard["panels"] for inner in panel.get("panels", ()))]


def filled(expression: str) -> str:
    """An expression of a panel without Grafana's variables."""
    for name, value in (("$__rate_interval", "5m"), ("$__range", "1h"), ("$model", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def expressions() -> list[tuple[str, str, str]]:
    """Of all alerts and panels: where it is, the expression, and what it is called in the legend."""
    found = [(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in rules()]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            found += [(panel["title"], filled(t["expr"]), t.get("legendFormat", "")) for t in panel.get("targets", ())]
        for note in dashboard["annotations"]["list"]:
            if "expr" in note:
                found.append((note["name"], filled(note["expr"]), note["textFormat"]))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
                found.append((variable["name"], f"sum by ({label}) ({name})", ""))
    return found


def known() -> dict[str, set[str]]:
    return {name: set(labels) for name, labels in Metrics().catalogue.items()} | OTHERS


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of an expression, with the labels that it selects by."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    for found in re.finditer(r"\b(up|ALERTS|(?:atonce|process|python)_\w+)\b(?:\{([^}]*)\})?", plain):
        yield found[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found[2] or ""))


@pytest.mark.parametrize(("where", "expression", "legend"), expressions(), ids=lambda value: str(value)[:30])
def test_every_expression_uses_metrics_and_labels_that_exist(where: str, expression: str, legend: str) -> None:
    metrics, found = known(), list(used(expression))
    assert found, f"{where} asks for nothing: {expression}"
    everywhere = set(FROM_PROMETHEUS)
    for name, labels in found:
        assert name in metrics, f"{where}: there is no metric {name}"
        assert labels <= metrics[name] | FROM_PROMETHEUS, f"{where}: {name} has no label {labels - metrics[name]}"
        everywhere |= metrics[name]
    grouped = {label for part in re.findall(r"(?:by|on|left) \(([^)]*)\)", expression) for label in re.findall(r"\w+", part)}
    assert grouped <= everywhere, f"{where}: no metric of it has {grouped - everywhere}"
    told = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend))
    # What a sum leaves is what it is grouped by.
    left = grouped if re.match(r"\s*(sum|max|min|histogram_quantile)\b", expression) and grouped else everywhere
    assert told <= left | {"alertname", "model", "version"} if where == "Alerts" else told <= left, f"{where}: {told - left}"


def test_the_check_finds_what_is_wrong() -> None:
    """Names and labels that do not exist are found, so the test above can fail."""
    assert list(used('sum(rate(atonce_typo_total{model="atonce_x"}[5m]))')) == [("atonce_typo_total", {"model"})]
    assert "atonce_typo_total" not in known()
    assert known()["atonce_images_total"] == {"model", "version", "kind"}
    assert list(used('up{job="a",x!~"b"} == 0')) == [("up", {"job", "x"})]


def test_every_metric_is_shown_somewhere() -> None:
    shown = {name for _, expression, _ in expressions() for name, _ in used(expression)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unseen = {name for name in Metrics().catalogue if re.sub(r"_(bucket|sum|count)$", "", name) not in stems}
    assert unseen <= {"atonce_build_info", "atonce_encoded_images_total"}


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 12
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/serving.md#{rule['alert'].lower()}"


def test_every_runbook_is_there() -> None:
    page = DEPLOY.parent / "docs" / "serving.md"
    if not page.exists():
        pytest.skip("docs/serving.md is not written yet")
    anchors = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.read_text().splitlines()
        if line[:1] == "#"
    }
    assert {rule["alert"].lower() for rule in rules()} <= anchors


def promtool(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, cwd=folder, timeout=120)


@needs_promtool
def test_promtool_takes_rules_configuration_and_every_expression(tmp_path: Path) -> None:
    for words in (("check", "rules", str(ALERTS)), ("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    asked = [{"record": f"panel:{i}", "expr": expression} for i, (_, expression, _) in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    done = promtool("check", "rules", "panels.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked[0]["expr"] = "sum(rate(up[5m])"
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    assert promtool("check", "rules", "panels.yml", folder=tmp_path).returncode != 0


@needs_promtool
def test_every_alert_fires_and_is_silent_when_it_must(tmp_path: Path) -> None:
    done = promtool("test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize(
    "expression", ["vector(0) > 1", 'label_replace(vector(1), "instance", "z", "", "")'], ids=["never", "always"]
)
def test_alerts_that_never_or_always_fire_are_noticed(tmp_path: Path, expression: str) -> None:
    groups = yaml.safe_load(ALERTS.read_text())
    for group in groups["groups"]:
        for rule in group["rules"]:
            rule |= {"expr": expression, "for": "0s"}
    shutil.copy(TESTS, tmp_path)
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(groups))
    done = promtool("test", "rules", TESTS.name, folder=tmp_path)
    noticed = set(re.findall(r'expr: "[^\n]*?(Atonce\w+)', done.stdout + done.stderr))
    assert noticed == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_sound(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] >= 39
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert {"datasource", "model", "instance"} <= variables
    everything = panels(dashboard)
    assert [panel["title"] for panel in everything if panel["type"] == "row"] == [
        "Overview", "Traffic", "Latency", "Queue and batching", "Quality", "Jobs", "Security", "Process",
    ]  # fmt: skip
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= variables
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_statistics_that_are_shown_exist() -> None:
    asked = {name for _, expression, _ in expressions() for name in re.findall(r'statistic="(\w+)"', expression)}
    assert asked
    assert asked <= {*STATISTICS, "repeats", "broken"}


def test_grafana_is_told_of_the_data_source_and_the_dashboards() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/atonce.yml").read_text())["providers"]
    compose = (DEPLOY / "compose.yml").read_text()
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose
    assert "./prometheus:/etc/prometheus:ro" in compose


# ---- a real Prometheus


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _busy() -> Metrics:
    """Metrics of a server that has seen everything once."""
    metrics = Metrics(ServeSettings(watch_seconds=60))
    metrics.loaded("digits", "0001", "stable")
    metrics.attach(
        statuses=lambda: [EngineStatus("digits", "0001", "eager", (1,), 9.0, 1, 0.1, 2.0, True, 1, 1, 1)],
        jobs=lambda: {"queued": 1},
    )
    metrics.batch("digits", "0001", 5, 8, 0.02)
    metrics.waited("digits", "0001", "bulk", 0.01)
    metrics.queued("digits", "0001", 2)
    metrics.made("digits", "0001", "generate", 5)
    metrics.refused("digits", "overloaded")
    metrics.encoded("png", 5, 0.1)
    metrics.job("generate", "done")
    for _ in range(900):
        metrics.edited("digits", {"mean": 0.5})
    readings = {name: Reading(0.5, (0.4, 0.6), 0.1, 0.3, True, True) for name in (*STATISTICS, "repeats", "broken")}
    metrics.quality("digits", "0001", readings, alarm=True, seconds=2.0, outcome="exceeded")
    metrics.loaded("digits", "0002", "canary")
    metrics.loaded("digits", "0002", "gone")
    metrics.http_requests.labels("/v1/generate", "POST", "200").inc()
    metrics.http_seconds.labels("/v1/generate").observe(0.1)
    metrics.http_bytes.labels("/v1/generate").inc(10)
    return metrics


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
@pytest.mark.timeout(120)
def test_a_real_prometheus_reads_the_metrics_answers_the_panels_and_raises_the_alarm(tmp_path: Path) -> None:
    metrics = _busy()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            metrics.http_requests.labels("/v1/generate", "POST", "200").inc()
            content, kind = metrics.text(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = _free_port()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    static = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
    config["scrape_configs"] = [{"job_name": "atonce", "static_configs": static}]
    config["rule_files"] = [str(ALERTS)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    words = [str(PROMETHEUS), f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen([*words, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL)

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    try:
        firing: set[str] = set()
        until = time.monotonic() + 60
        while time.monotonic() < until and "AtonceQualityDrift" not in firing:
            time.sleep(0.5)
            try:
                firing = {each["labels"]["alertname"] for each in ask("alerts")["alerts"] if each["state"] == "firing"}
            except OSError:  # it is still starting
                continue
        assert "AtonceQualityDrift" in firing
        assert "AtonceDown" not in firing
        time.sleep(2)  # a rate needs two samples
        empty = []
        for where, expression, _ in expressions():
            query = urllib.parse.urlencode({"query": expression.replace("[5m]", "[1m]")})
            if not ask(f"query?{query}")["result"]:
                empty.append(where)
        alerts = {rule["alert"] for rule in rules()}
        # Panels about failures that did not happen have nothing to show; all others do.
        allowed = {"Without a key that works", "Limits reached", "Requests that are none", "Errors"}
        assert set(empty) - alerts <= allowed
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
