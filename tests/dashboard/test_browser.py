"""The live page in a real headless Chromium, driven through its DevTools socket."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
]
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


class Browser:
    """One tab. `wait_for` polls a JavaScript expression until it is true."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._n_sent = 0
        self.errors: list[str] = []
        self.call("Runtime.enable")

    def call(self, method: str, **params: object) -> dict:
        self._n_sent += 1
        self._socket.send(json.dumps({"id": self._n_sent, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                return answer["result"]

    def ask(self, expression: str) -> object:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.ask(expression) is not True:
            assert time.monotonic() < deadline, (expression, self.ask("document.body.innerText"))
            time.sleep(0.1)

    def open(self, address: str, width: int = 1280) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    profile = tmp_path / "profile"
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_S
        while not (port_file.exists() and "\n" in port_file.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, "chromium did not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tabs = json.load(answer)
        address = next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


class Server:
    """`watch.py` as a user starts it; can be stopped and started again on the same port."""

    def __init__(self, run: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, str(ROOT / "launch/watch.py"), str(run), "--port", str(port)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, *options], env=environ, stdout=subprocess.PIPE, text=True
        )
        self.address, found = re.search(
            r"(http://[^ :]+:(\d+)/\S*)", self.process.stdout.readline()
        ).groups()
        self.port = int(found)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=20)
            self.process.stdout.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(run: Path, *options: str, port: int = 0) -> Server:
        servers.append(Server(run, *options, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_shows_a_run_and_follows_it(run, browser: Browser, serve) -> None:
    browser.open(serve(run.path).address)
    browser.wait_for("document.getElementById('state').textContent === 'running'")
    browser.wait_for("document.querySelectorAll('.chart svg path').length === 2")
    assert browser.ask("document.title") == "demo-run - WarpZone"
    assert browser.ask("document.getElementById('frame').naturalWidth") == 32
    assert browser.ask("document.querySelectorAll('#bars tr').length") == 3
    assert browser.ask("document.querySelectorAll('#bars .bar').length") == 9
    assert browser.ask("document.querySelector('#bars tr.chosen th').textContent") == "right"
    prompt = "document.getElementById('prompt').textContent"
    assert browser.ask(prompt) == "Goomba 3 tiles right <b>bold</b>", "text, not markup"
    assert "waits for sample 61%" in browser.ask("document.getElementById('waits').innerText")
    fleet = browser.ask("document.getElementById('fleet').innerText")
    assert "env-actor-0" in fleet and "(stalled)" in fleet and "512 MB" in fleet

    run.live("Pipe ahead")
    run.metrics(110, avg_return=77.25)
    browser.wait_for(f"{prompt} === 'Pipe ahead'")
    browser.wait_for("document.getElementById('tiles').innerText.includes('77.25')")
    assert browser.ask("document.querySelectorAll('#bars .bar').length") == 6, "no LLM prior now"
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


def test_empty_and_finished_runs(empty_run, browser: Browser, serve) -> None:
    empty_run.finish()
    browser.open(serve(empty_run.path).address)
    browser.wait_for("document.getElementById('state').textContent === 'finished'")
    shown = browser.ask("document.querySelectorAll('.empty.shown').length")
    assert shown == 5, "every part says that it has nothing"
    assert browser.errors == []


def test_wrong_token_is_refused(run, browser: Browser, serve, tmp_path) -> None:
    (tmp_path / "token").write_text("right-token\n")
    server = serve(run.path, "--token-file", str(tmp_path / "token"))
    assert server.address.endswith("?token=TOKEN")
    browser.open(server.address.replace("TOKEN", "wrong-token"))
    assert "needs the token" in browser.ask("document.body.innerText")
    browser.open(server.address.replace("TOKEN", "right-token"))
    browser.wait_for("document.getElementById('state').textContent === 'running'")


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_fits_the_width(run, browser: Browser, serve, width: int) -> None:
    browser.open(serve(run.path).address, width)
    browser.wait_for("document.querySelectorAll('.chart').length === 2")
    assert browser.ask("document.documentElement.scrollWidth") <= width
