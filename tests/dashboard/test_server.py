"""Who gets in, and the command's errors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from launch.access import is_loopback
from launch.dashboard.run_view import RunView
from launch.dashboard.server import Gate, make_app, read_page

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
    ],
)
def test_gate(secret: str | None, token: str | None, host: str, origin: str | None, may) -> None:
    assert Gate(secret).lets_in(token, host, origin) is may


def test_page_is_one_piece_and_names_no_other_host() -> None:
    page = read_page()
    assert "drawCurves" in page and "/*page." not in page
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
        (["{run}", "--port", "{busy}"], "Choose another with --port"),
        (["{run}", "--token-file", "{short}"], "at least 8 characters"),
        (["{run}", "--token-file", "{folder}/none"], "none can't be read: No such file"),
        (["{run}", "--host", "0.0.0.0"], "WARPZONE_WATCH_TOKEN or with --token-file"),
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
