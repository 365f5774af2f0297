"""Alert rules, Grafana's dashboard and the command that starts Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from launch import prometheus
from launch.monitoring.ray_metrics import EXPORTED_PREFIX, LABELS, gauge_of

MONITORING = Path(prometheus.__file__).parent / "monitoring"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
DASHBOARD = json.loads((MONITORING / prometheus.DASHBOARD_FILE).read_text())
RULES = yaml.safe_load((MONITORING / prometheus.RULES_FILE).read_text())["groups"][0]["rules"]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def documented_names() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), re.M)


def documented_gauges() -> list[re.Pattern[str]]:
    families = {name.partition("/")[0] for name in documented_names()}
    return [re.compile(re.sub(r"<\w+>", r"\\w+", family)) for family in families]


@pytest.mark.parametrize("expression", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_queries_and_alerts_use_documented_figures(expression: str) -> None:
    used = re.findall(rf"{EXPORTED_PREFIX}(\w+)", expression)
    assert used
    for name in used:
        assert any(pattern.fullmatch(name) for pattern in documented_gauges()), name


def test_every_query_is_of_the_chosen_runs() -> None:
    assert len(QUERIES) > 40
    for query in QUERIES:
        assert query.count('{run=~"$run"}') == query.count(EXPORTED_PREFIX), query


def test_labels_are_those_of_the_page() -> None:
    named = {
        family: tuple(re.findall(r"<(\w+)>", rest))
        for family, slash, rest in (name.partition("/") for name in documented_names())
        if slash
    }
    assert named == LABELS
    assert gauge_of("wait_percent/learner/sample") == (
        "warpzone_wait_percent",
        {"process": "learner", "cause": "sample"},
    )
    with pytest.raises(ValueError, match=r"shorter|longer"):
        gauge_of("loss_total/learner")


def test_every_alert_is_on_the_page_and_tells_what_to_look_at() -> None:
    table = re.findall(r"^\| `(WarpZone\w+)` \|", PAGE.read_text(), re.M)
    assert table == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "prometheus"
    folder.mkdir(parents=True)
    (folder / "targets.json").write_text('[{"targets": ["127.0.0.1:1"], "labels": {}}]')
    return folder.parent


def test_folder_without_nodes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prometheus.main([str(tmp_path), "--binary", "sh"])
    assert ended.value.code == 2
    assert "has no prometheus/targets.json" in capsys.readouterr().err


def test_absent_program_and_bad_port_say_what_to_do(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prometheus.main([str(run_dir), "--binary", "no-such-prometheus"])
    assert "--binary PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prometheus.main([str(run_dir), "--port", "0"])
    assert "--port must lie in [1, 65535], got 0" in capsys.readouterr().err


def test_promtool_takes_configuration_and_rules(run_dir: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    config = prometheus.prepare(run_dir) / prometheus.CONFIG_FILE
    checked = subprocess.run([promtool, "check", "config", str(config)], capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()


def test_prometheus_starts_with_the_rules(run_dir: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed")
    folder = prometheus.prepare(run_dir)
    process = subprocess.Popen(
        prometheus.command(binary, folder, 19_390), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        rules = ask(19_390, "/api/v1/rules")
        assert [r["name"] for r in rules["groups"][0]["rules"]] == [r["alert"] for r in RULES]
        targets = ask(19_390, "/api/v1/targets")["activeTargets"]
        assert [t["scrapeUrl"] for t in targets] == ["http://127.0.0.1:1/metrics"]
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(port: int, path: str) -> dict:
    """Data of Prometheus's answer, which begins to serve some time after its start."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                data = json.load(answer)["data"]
        except OSError:
            data = {}
        if data.get("groups") or data.get("activeTargets"):
            return data
        assert time.monotonic() < deadline, path
        time.sleep(0.2)
