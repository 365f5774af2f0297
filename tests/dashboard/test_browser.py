"""The live page in a real headless Chromium: pages of pretended runs, and of a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dashboard.chromium import CHROMIUM, ROOT, Browser

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium or google-chrome on PATH, and nothing of ours installs one: "
    "apt-get install chromium",
)

LIVE = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 6 --total-env-steps 1000000
    --replay.min-positions 40 --learner.batch-size 16 --control.updates-per-call 2
    --limiter.samples-per-insert 4
    --evaluation.every-env-steps 100000000 --control.checkpoint-every-env-steps 100000000
    --control.log-period-s 0.5 --dashboard --dashboard.port 0"""
)

REPLAY = {
    "replay_positions": 1234,
    "replay_fill_rate": 0.25,
    "replay_bytes": 5_000_000,
    "replay_push_total": 4321,
    "replay_sample_total": 77,
    "ratio_actual": 3.75,
    "ratio_target": 4.0,
    "replay_lag_p50": 6,
    "replay_lag_p90": 19,
    "replay_priority_p50": 0.125,
    "replay_priority_p90": 0.5,
    "replay_priority_p99": 2.0,
    "replay_draw_ms": 0.5,
    "replay_gather_ms": 1.5,
    "replay_targets_ms": 2.0,
}


def wait_for(is_so: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def shown(browser: Browser, name: str) -> str:
    return browser.ask(f"document.getElementById('{name}').innerText")


def test_shows_a_run(run, browser: Browser, serve) -> None:
    browser.open(serve(run.path).address)
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    browser.wait_for("document.querySelectorAll('#charts .chart svg path').length === 2")
    assert browser.ask("document.title") == "demo-run - WarpZone"
    assert browser.ask("document.getElementById('frame').naturalWidth") == 32
    assert browser.ask("document.querySelectorAll('#bars tr').length") == 3
    assert browser.ask("document.querySelectorAll('#bars .bar').length") == 9
    assert browser.ask("document.querySelector('#bars tr.chosen th').textContent") == "right"
    assert browser.ask("document.querySelectorAll('#thumbnails img').length") == 3
    assert browser.ask("document.querySelectorAll('#path path').length") == 2, "value and return"
    assert shown(browser, "more-actions") == "and 2 actions that nobody thinks much of"
    bars = "[...document.querySelectorAll('#bars .bar')].map((bar) => bar.title)"
    assert browser.ask(bars) == [
        *("search: 10%", "world model: 30%", "LLM prior: 20%"),
        *("search: 70%", "world model: 30%", "LLM prior: 20%"),
        *("search: 20%", "world model: 40%", "LLM prior: 60%"),
    ]
    path = "document.querySelector('#path svg').getAttribute('aria-label')"
    assert browser.ask(path) == "Value along the episode: value 1.5"
    assert [f in shown(browser, "env-facts") for f in ("1-1", "2.25", "1.50")] == [True] * 3
    assert browser.ask("document.querySelectorAll('#tree circle').length") == 6
    assert browser.ask("document.querySelectorAll('#tree .edge.best').length") == 3
    prompt = "document.getElementById('prompt').textContent"
    text = "Choose. State: Goomba 3 tiles right <b>bold</b>"
    assert browser.ask(prompt) == text, "text, not markup"
    assert "waits for sample 61%" in shown(browser, "waits")
    fleet = shown(browser, "fleet")
    assert "env-actor-0" in fleet and "collect (stalled)" in fleet and "537 MB" in fleet
    assert re.search(r"env-actor-0\s.*\s[23] min ago", fleet), fleet
    assert re.search(r"learner\s.*\s\d+ s ago.*\s1 \(last 2 h ago\)", fleet), fleet
    checkpoints = shown(browser, "checkpoints")
    assert "newest, best evaluation" in checkpoints and "1.3 s" in checkpoints
    assert re.search(r"\d s ago", checkpoints)
    assert "child failed" in shown(browser, "events")
    assert "child learner, cause it <b>broke</b>" in shown(browser, "events"), "text, not markup"
    assert browser.errors == []


def test_shows_replay_its_priorities_and_what_sampling_takes(run, browser, serve) -> None:
    run.metrics(100, **REPLAY)
    browser.open(serve(run.path).address)
    browser.wait_for("document.querySelectorAll('#priorities tr').length === 3")
    facts = shown(browser, "replay-facts")
    for fact in ("1,234 \u00b7 25% full, 5 MB", "4,321 \u00b7 77 batches sampled"):
        assert fact in facts, facts
    assert "3.75 \u00b7 wanted 4.00" in facts and "6 updates \u00b7 90% up to 19" in facts
    widths = "[...document.querySelectorAll('#priorities .bar i')].map((bar) => bar.offsetWidth)"
    low, middle, high = browser.ask(widths)
    assert high == pytest.approx(4 * middle, abs=3) and middle == pytest.approx(4 * low, abs=5)
    sampling = " ".join(shown(browser, "sampling").split())
    assert sampling == ("making a batch takes 4.00 ms draw 0.50 ms gather 1.50 ms targets 2.00 ms")
    assert browser.errors == []


def test_goes_on_with_what_the_run_writes(run, browser, serve) -> None:
    browser.open(serve(run.path).address)
    prompt = "document.getElementById('prompt').textContent"
    browser.wait_for(f"{prompt}.includes('Goomba')")

    run.live("Pipe ahead")
    run.metrics(110, avg_return=77.25, search_served_busy_share=0.625)
    silent = {"phase": None, "state": "suspect", "age_s": 70.0, "is_stalled": True}
    beat = {"timestamp": time.time(), "processes": {"monitor": silent}}
    run.append("heartbeat.jsonl", beat)
    browser.wait_for("document.getElementById('fleet').innerText.includes('\u2013 (stalled)')")
    browser.wait_for("/search service busy\\s+63%/.test(document.body.innerText)")
    browser.wait_for(f"{prompt} === 'Choose. State: Pipe ahead'")
    browser.wait_for("document.getElementById('tiles').innerText.includes('77.25')")
    assert browser.ask("document.querySelectorAll('#bars .bar').length") == 6, "no LLM prior now"
    assert browser.errors == []


def test_tells_the_run_what_is_looked_at_and_when_nobody_looks(run, browser, serve) -> None:
    (run.path / "requests").mkdir()
    viewer = run.path / "requests" / "viewer.json"
    browser.open(serve(run.path).address)
    browser.wait_for("document.querySelectorAll('#thumbnails button').length === 3")
    assert wait_for(lambda: viewer.exists() and json.loads(viewer.read_text())["env"] == 0)
    browser.ask("document.querySelectorAll('#thumbnails button')[2].click()")
    name = "document.getElementById('env-name').textContent"
    browser.wait_for(f"{name} === 'actor 0 \\u00b7 env 2'")
    assert wait_for(lambda: json.loads(viewer.read_text()) == {"actor": 0, "env": 2})
    assert browser.ask("document.getElementById('tree').hidden"), "only one tree is sent"
    browser.call("Page.navigate", url="about:blank")
    assert wait_for(lambda: not viewer.exists()), "nobody looks"
    assert browser.errors == []


def test_survives_a_dropped_socket(run, browser: Browser, serve) -> None:
    server = serve(run.path)
    browser.open(server.address)
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    server.stop()
    browser.wait_for("document.getElementById('state').textContent.includes('lost')")
    run.metrics(110, avg_return=77.25)
    serve(run.path, port=server.port)
    browser.wait_for("document.getElementById('tiles').innerText.includes('77.25')")
    assert browser.errors == []


def test_a_socket_that_is_open_and_silent_is_given_up(run, browser: Browser, serve) -> None:
    """As after sleep, when the clock has moved on and nobody is at the other end."""
    server = serve(run.path)
    browser.open(server.address)
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    server.process.send_signal(signal.SIGSTOP)
    try:
        browser.ask("real = Date.now, Date.now = () => real() + 60000")
        browser.wait_for("document.getElementById('state').textContent.includes('lost')")
    finally:
        server.process.send_signal(signal.SIGCONT)
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    assert browser.errors == []


def test_a_finished_run_keeps_what_it_has(run, browser: Browser, serve) -> None:
    role = {"role": "learner", "stages": {"train": [60.0, 9], "limiter-wait": [40.0, 0]}}
    run.timings(100.0, learner=role)
    run.finish()
    browser.open(serve(run.path).address)
    browser.wait_for("document.getElementById('state').textContent === 'finished'")
    browser.wait_for("document.querySelectorAll('#charts .chart').length > 0")
    assert browser.ask("document.querySelectorAll('#thumbnails img').length") == 3
    assert browser.ask("document.querySelectorAll('#tree circle').length") == 6
    waits = " ".join(shown(browser, "waits").split())
    assert waits == "learner train 60% nothing to do (limiter, pause, restart) 40%"
    assert shown(browser, "waits-over") == "share of wall time since the last start"
    assert browser.ask("document.getElementById('pause').disabled")
    assert "has ended" in shown(browser, "settings-note")
    assert browser.errors == []


def test_empty_and_finished_runs(empty_run, browser: Browser, serve) -> None:
    empty_run.finish()
    browser.open(serve(empty_run.path).address)
    browser.wait_for("document.getElementById('state').textContent === 'finished'")
    shown = browser.ask("document.querySelectorAll('.empty.shown').length")
    assert shown == 8, "every part says that it has nothing"
    assert browser.errors == []


def test_wrong_token_is_refused(run, browser: Browser, serve, tmp_path) -> None:
    (tmp_path / "token").write_text("right-token\n")
    server = serve(run.path, "--token-file", str(tmp_path / "token"))
    assert server.address.endswith("?token=TOKEN")
    for without in (server.address.partition("?")[0], server.address.replace("TOKEN", "wrong")):
        browser.open(without)
        browser.wait_for("document.body.innerText.includes('needs the token')")
    browser.open(server.address.replace("TOKEN", "right-token"))
    browser.wait_for("document.getElementById('state').textContent === 'running'")


def test_a_token_that_changed_is_told_from_a_lost_connection(run, browser, serve, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_text(f"{name}-token\n")
    server = serve(run.path, "--token-file", str(tmp_path / "old"))
    browser.open(server.address.replace("TOKEN", "old-token"))
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    server.stop()
    serve(run.path, "--token-file", str(tmp_path / "new"), port=server.port)
    browser.wait_for("document.getElementById('state').textContent.includes('not valid any more')")


def test_a_browser_without_websocket_is_told(run, browser: Browser, serve) -> None:
    browser.call("Page.enable")
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.WebSocket")
    browser.open(serve(run.path).address)
    browser.wait_for("document.body.innerText.includes('has no WebSocket: use a newer one')")
    assert browser.errors == []


@pytest.mark.parametrize("width", [360, 420, 800, 1280, 1600])
def test_fits_the_width(run, browser: Browser, serve, width: int) -> None:
    browser.open(serve(run.path).address, width)
    browser.wait_for("document.querySelectorAll('#charts .chart').length === 2")
    assert browser.ask("document.documentElement.scrollWidth") <= width


class LiveRun:
    """A real run of CartPole in one process, with its page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "launch/train.py", *LIVE, "--run-dir", str(folder)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def address(self) -> str:
        def said() -> re.Match[str] | None:
            return re.search(r"live page: (http://127\.0\.0\.1:\d+/)", self.log.read_text())

        assert wait_for(lambda: said() is not None), self.log.read_text()
        return said()[1]

    def events(self, kind: str) -> list[dict]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    def has_settled(self) -> bool:
        """Nothing that was under way is reported any more."""
        steps = self.steps()
        time.sleep(1.2)
        return self.steps() == steps

    def steps(self) -> int:
        return json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])[
            "global_step"
        ]


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[LiveRun]:
    run = LiveRun(tmp_path / "live")
    yield run
    if run.process.poll() is None:
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


def test_a_real_run_is_seen_changed_paused_saved_and_left(live_run: LiveRun, browser, serve):
    browser.open(live_run.address())
    browser.wait_for("document.querySelectorAll('#thumbnails button').length === 4")
    browser.wait_for("document.querySelectorAll('#tree circle').length > 1")
    browser.wait_for("!document.getElementById('pause').disabled")

    def set_to(name: str, value: str) -> None:
        browser.ask(f"document.getElementById('knob-{name}').value = '{value}'")
        browser.ask(f"document.getElementById('knob-{name}').form.requestSubmit()")

    def reply(name: str) -> str:
        return f"document.getElementById('knob-{name}').form.querySelector('.reply').textContent"

    set_to("temperature", "0.75")
    browser.wait_for(f"{reply('temperature')}.endsWith('\\u2192 0.75')")
    set_to("temperature", "50")
    browser.wait_for(f"{reply('temperature')}.includes('must be a number in [0.01, 10]')")
    set_to("simulations", "3")
    browser.wait_for(f"{reply('simulations')} === 'simulations 6 \\u2192 3'")
    set_to("learning_rate_scale", "0.5")
    browser.wait_for(f"{reply('learning_rate_scale')}.endsWith('\\u2192 0.5')")
    changes = {e["setting"]: (e["before"], e["after"]) for e in live_run.events("setting_changed")}
    assert changes["temperature"][1] == 0.75 and changes["learning_rate_scale"] == (1.0, 0.5)
    assert changes["simulations"] == (6, 3)
    assert "got 50" in live_run.events("setting_refused")[0]["cause"]
    # The root that is drawn has its own visit and those of three simulations.
    browser.wait_for(
        "document.querySelector('#tree circle').previousSibling.textContent.includes(' 4 visits')"
    )

    browser.ask("document.getElementById('pause').click()")
    browser.wait_for("document.getElementById('pause').textContent === 'Resume'")
    assert wait_for(live_run.has_settled)
    steps = live_run.steps()
    browser.ask("document.getElementById('checkpoint').click()")
    assert wait_for(lambda: bool(live_run.events("checkpoint")))
    assert live_run.events("checkpoint")[0]["reason"] == "asked for"
    assert live_run.steps() == steps, "nobody plays"
    browser.ask("document.getElementById('pause').click()")
    assert wait_for(lambda: live_run.steps() > steps)
    assert browser.errors == []

    live_run.process.send_signal(signal.SIGINT)
    assert live_run.process.wait(timeout=60) == 75, live_run.log.read_text()
    browser.wait_for("document.getElementById('farewell').textContent !== ''")
    assert shown(browser, "farewell").endswith(f"python launch/watch.py {live_run.folder}")
    assert shown(browser, "state") == "stopped"
    assert browser.ask("document.getElementById('pause').disabled")
    browser.open(serve(live_run.folder).address)
    browser.wait_for("document.getElementById('state').textContent === 'stopped'")
    assert browser.ask("document.getElementById('pause').disabled")
    browser.wait_for("document.querySelectorAll('#thumbnails button').length >= 1")
    assert browser.errors == []
