"""Who gets in, and the command's errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from launch.access import is_loopback
from launch.config import Config
from launch.control.live_control import LiveControl
from launch.control.progress import Progress
from launch.control.request_box import RequestDesk
from launch.dashboard.desk import Desk
from launch.dashboard.run_view import RunView
from launch.dashboard.server import Audience, Feed, Gate, Visit, make_app, read_page

ROOT = Path(__file__).resolve().parents[2]
LOCAL = {"base_url": "http://127.0.0.1:8321"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


@pytest.mark.parametrize(
    "secret, token, host, origin, may",
    [
        (None, None, "127.0.0.1:8321", None, True),
        (None, None, "[::1]:8321", "http://[::1]:8321", True),
        (None, None, "localhost:8321", "http://localhost:8321", True),
        (None, None, "rebound.example:8321", None, False),
        (None, None, "127.0.0.1:8321", "http://evil.example", False),
        ("s3cret-token", None, "127.0.0.1:8321", None, False),
        ("s3cret-token", "s3cret-tokem", "10.0.0.2:8321", None, False),
        ("s3cret-token", "schlüssel", "10.0.0.2:8321", None, False),
        ("s3cret-token", "s3cret-token", "10.0.0.2:8321", "http://10.0.0.2:8321", True),
        ("s3cret-token", "s3cret-token", "10.0.0.2:8321", "http://evil.example", False),
        (None, None, "[", None, False),
        (None, None, "127.0.0.1:8321", "http://[", False),
        ("s3cret-token", "s3cret-token", "[", None, False),
    ],
)
def test_gate(secret: str | None, token: str | None, host: str, origin: str | None, may) -> None:
    assert Gate(secret).lets_in(token, host, origin) is may


def test_page_is_one_piece_and_names_no_other_host() -> None:
    page = read_page()
    assert "drawCurves" in page and "function connect" in page and "/*page." not in page
    links = set(re.findall(r"https?://[\w.]+", page))
    assert links == {"http://www.w3.org"}, "only the SVG namespace, which is never fetched"


def test_feed_sends_the_run_and_then_news(run) -> None:
    client = TestClient(make_app(RunView(run.path), None), **LOCAL)
    assert client.get("/").status_code == 200
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    with client.websocket_connect("/feed", headers={"host": "127.0.0.1:8321"}) as feed:
        kinds = [message["kind"] for message in feed.receive_json()["messages"]]
        assert "curves" in kinds and "live" in kinds
        run.live("Pipe ahead")
        news = feed.receive_json()
        while not news["messages"]:
            news = feed.receive_json()
        assert [m["kind"] for m in news["messages"]] == ["live"]


def test_a_host_that_is_no_address_is_shut_out(run) -> None:
    client = TestClient(make_app(RunView(run.path), None), **LOCAL)
    assert client.get("/", headers={"host": "["}).status_code == 401


def test_a_name_that_is_no_text_reaches_the_browser(tmp_path) -> None:
    (folder := tmp_path / os.fsdecode(b"run-\xff")).mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    with connected_to(folder) as feed:
        status = next(m for m in feed.receive_json()["messages"] if m["kind"] == "status")
    assert status["data"]["run"] == "run-\udcff"


TEXTS = st.text(st.characters() | st.just("\ud800"), max_size=6)
SIZES = st.integers() | st.sampled_from([10**400, -(10**400), 2**1023, 10**308])
STRANGE = st.recursive(
    st.none() | st.booleans() | SIZES | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KNOWN = st.sampled_from(
    [
        "timestamp",
        "global_step",
        "avg_return",
        "processes",
        "learner",
        "age_s",
        "phase",
        "stages",
        "role",
        "work",
        "wall_s",
        "event",
        "child",
        "path",
        "environments",
        "settings",
        "cpu_percent",
        "rss_mb/learner",
        "wait_percent/learner/sample",
    ]
)
RECORDS = st.recursive(
    st.dictionaries(KNOWN | TEXTS, STRANGE, max_size=5),
    lambda inner: st.dictionaries(KNOWN, inner | STRANGE, max_size=4),
    max_leaves=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, min_size=1, max_size=3))
def test_no_record_ends_the_feed(tmp_path, records: list[dict]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for name in ("metrics.jsonl", "events.jsonl", "heartbeat.jsonl"):
        (folder / name).write_text(lines)
    for name in ("live.json", "live-settings.json", "timings.json", "summary.json"):
        (folder / name).write_text(json.dumps(records[-1]))
    with connected_to(folder) as feed:
        news = json.loads(feed.receive_text())
    assert {"status", "fleet", "waits"} <= {message["kind"] for message in news["messages"]}


def test_wrong_token_is_refused_on_page_and_feed(run) -> None:
    client = TestClient(make_app(RunView(run.path), "s3cret-token"), **LOCAL)
    for query in ("", "?token=wrong-token"):
        answer = client.get(f"/{query}")
        assert answer.status_code == 401 and "needs the token" in answer.text
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(f"/feed{query}", headers={"host": "127.0.0.1:8321"}),
        ):
            pass
    assert client.get("/?token=s3cret-token").status_code == 200


class Taker:
    """The run's side of a page: looks for requests as a controller does, in a thread."""

    def __init__(self, run) -> None:
        self.events: list[dict] = []
        progress = Progress(2)
        self.control = LiveControl(Config(), run.path, self, progress, time.monotonic)
        self.control.begin()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ends.wait(0.05):
            self.control.look()

    def event(self, kind: str, **fields: object) -> None:
        self.events.append({"event": kind, **fields})

    def live_settings(self, settings: object) -> None: ...

    def __enter__(self) -> Taker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()


def replies(feed, n: int = 1) -> list[dict]:
    """The next `n` replies; news go by."""
    found: list[dict] = []
    while len(found) < n:
        found += feed.receive_json()["replies"]
    return found


def connected(run, **options):
    return connected_to(run.path, **options)


def connected_to(folder: Path, **options):
    client = TestClient(make_app(RunView(folder), None, **options), **LOCAL)
    return client.websocket_connect("/feed", headers={"host": "127.0.0.1:8321"})


def asking(number: int, setting: str, value: object) -> dict:
    return {"kind": "ask", "id": number, "ask": "setting", "setting": setting, "value": value}


def test_a_change_goes_to_the_run_and_its_answer_comes_back(run) -> None:
    with Taker(run) as taker, connected(run) as feed:
        feed.send_json(asking(1, "temperature", 0.5))
        feed.send_json(asking(2, "temperature", 1e9))
        feed.send_json({"kind": "ask", "id": 3, "ask": "checkpoint", "setting": "ignored"})
        feed.send_json({"kind": "ask", "id": 4, "ask": "rm -r"})
        heard = {reply["id"]: reply for reply in replies(feed, 4)}
        assert heard[1]["is_done"] and heard[1]["text"] == "temperature 1 → 0.5"
        assert not heard[2]["is_done"] and "must be a number in [0.01, 10]" in heard[2]["text"]
        assert heard[3]["is_done"] and taker.control.take_checkpoint_wish()
        assert not heard[4]["is_done"] and "nothing else" in heard[4]["text"]
    assert [e["event"] for e in taker.events] == ["setting_changed", "setting_refused"]
    assert taker.control.settings.temperature == 0.5


def test_what_is_no_request_is_ignored(run) -> None:
    with Taker(run) as taker, connected(run) as feed:
        for text in ("", "null", "[1]", "{", "[" * 3000, '{"kind": "ask"}', '{"kind": "look"}'):
            feed.send_text(text)
        feed.send_bytes(b"\xff\x00")
        feed.send_json(asking(9, "simulations", 2))
        assert [r["is_done"] for r in replies(feed, 2)] == [False, True]
    assert len(taker.events) == 1


def test_a_run_that_has_ended_is_left_as_it_is(run) -> None:
    run.finish()
    with connected(run) as feed:
        feed.send_json(asking(1, "temperature", 0.5))
        feed.send_json({"kind": "look", "actor": 0, "env": 0})
        (reply,) = replies(feed)
    assert not reply["is_done"] and "this run has finished" in reply["text"]
    assert not (run.path / "requests").exists()


def test_a_run_that_does_not_look_is_told_of_and_asked_no_more(run) -> None:
    (run.path / "requests").mkdir()
    with connected(run, patience_s=0.3) as feed:
        feed.send_json(asking(1, "temperature", 0.5))
        (reply,) = replies(feed)
    assert not reply["is_done"] and "did not look at it within" in reply["text"]
    assert list((run.path / "requests").iterdir()) == [], "nothing waits for a later process"


def test_a_run_directory_that_cannot_be_written_is_told(run) -> None:
    """As where it is mounted for reading only; a run of an older version has no such folder."""
    with connected(run) as feed:
        feed.send_json(asking(1, "temperature", 0.5))
        (reply,) = replies(feed)
    assert not reply["is_done"] and "can't be written: No such file" in reply["text"]


def test_who_comes_while_the_last_one_leaves_stays_seen(run, monkeypatch) -> None:
    """On a slow disk the sign of a viewer is taken down late."""
    (run.path / "requests").mkdir()
    leave = RequestDesk.leave

    def leave_late(desk: RequestDesk) -> None:
        time.sleep(0.2)
        leave(desk)

    monkeypatch.setattr(RequestDesk, "leave", leave_late)

    async def come_and_go() -> None:
        desk = Desk(run.path, lambda: "running", patience_s=1.0)
        await desk.looks("one", 0, 0)
        leaving = asyncio.create_task(desk.leaves("one"))
        await asyncio.sleep(0.05)
        await desk.looks("another", 0, 1)
        await leaving

    asyncio.run(come_and_go())
    viewer = run.path / "requests" / "viewer.json"
    assert json.loads(viewer.read_text()) == {"actor": 0, "env": 1}


class BrokenSocket:
    """One that fails otherwise than by a browser that left."""

    async def receive(self) -> dict:
        raise OSError("the socket broke")

    async def send_text(self, text: str) -> None:
        await asyncio.sleep(0)


def test_what_broke_a_connection_is_not_lost(run) -> None:
    async def serve() -> None:
        desk = Desk(run.path, lambda: "running", patience_s=1.0)
        await Visit(BrokenSocket(), Feed(RunView(run.path)), desk).serve()

    with pytest.raises(OSError, match="the socket broke"):
        asyncio.run(serve())


def test_browsers_are_told_when_the_page_ends_with_its_run(run) -> None:
    audience = Audience()
    audience.part("nobody is there")
    with connected(run, audience=audience) as feed:
        feed.receive_json()
        run.finish()
        parting = threading.Thread(target=audience.part, args=("open it again so",))
        parting.start()
        news = feed.receive_json()
        while "farewell" not in news:
            news = feed.receive_json()
        parting.join()
        states = [m["data"]["state"] for m in news["messages"] if m["kind"] == "status"]
        assert (news["farewell"], states) == ("open it again so", ["finished"])
        with pytest.raises(WebSocketDisconnect):
            feed.receive_json()


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/watch.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{folder}"], "is not a run directory"),
        (["{folder}/nothing"], "does not exist"),
        (["{run}", "--port", "70000"], r"--port must lie in \[0, 65535\], got 70000"),
        (["{run}", "--port", "{busy}"], "Choose another port"),
        (["{run}", "--token-file", "{short}"], "at least 8 characters"),
        (
            ["{run}", "--token-file", "{folder}/none"],
            "none can't be read: No such file",
        ),
        (["{run}", "--host", "0.0.0.0"], "WARPZONE_WATCH_TOKEN or in a token file"),
        (
            ["{run}", "--host", "no.such.host.invalid", "--token-file", "{long}"],
            "can't listen on no.such.host.invalid",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(run, arguments, message: str) -> None:
    (short := run.path.parent / "short").write_text("pw-4711")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        known = {"folder": run.path.parent, "run": run.path, "busy": busy.getsockname()[1]}
        known |= {"short": short, "long": ROOT / "LICENSE"}
        result = watch(*(argument.format(**known) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert re.search(message, result.stderr) and result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "pw-4711" not in result.stderr


@pytest.mark.parametrize("given", ["", "s3cret-token"])
def test_beyond_loopback_a_token_is_needed_and_shown_only_if_made_up(run, given: str) -> None:
    terminal, its_end = os.openpty()  # where a made-up one may be shown
    command = [sys.executable, str(ROOT / "launch/watch.py"), str(run.path)]
    server = subprocess.Popen(
        [*command, "--host", "0.0.0.0", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "WARPZONE_WATCH_TOKEN": given},
        stdout=its_end,
    )
    os.close(its_end)
    output = os.fdopen(terminal, encoding="utf-8")
    try:
        line = output.readline()
        port, shown = re.search(r":(\d+)/\?token=(\S+) ", line).groups()
        assert shown == "TOKEN" if given else len(shown) >= 16
        token = given or shown
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?token={token}") as page:
            assert page.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        output.close()
