"""Who answers at an address is found out before anything is sent there."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import ray

from launch import submit
from launch.jobs import connection
from launch.jobs.connection import JobError, JobServer


@contextlib.contextmanager
def answering(status: int, body: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Address of a server that answers every question alike; it takes nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def refusal(address: str, *, allow_open: bool = False) -> str:
    with pytest.raises(JobError) as caught:
        JobServer(address, allow_open=allow_open, warn=pytest.fail)
    return str(caught.value)


def version(ray_version: str) -> str:
    return json.dumps({"version": "4", "ray_version": ray_version})


@pytest.fixture
def own_address() -> str:
    """One of this machine that others may reach."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                return each.address
    pytest.skip("this machine has none but loopback addresses")


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "http://", "http://me:hunter22@head:8265"]
)
def test_an_address_of_another_kind_is_told_at_once(address):
    text = refusal(address)
    assert "must be that of a job server, such as http://" in text
    assert "hunter22" not in text


def test_an_address_where_nobody_is(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(connection, "PROBE_S", 0.3)
        assert "no answer in 0 s" in refusal(f"http://127.0.0.1:{port}")
    assert "Connection refused" in refusal(f"http://127.0.0.1:{port}")
    assert "no-such-host.invalid" in refusal("http://no-such-host.invalid:8265")


@pytest.mark.parametrize(("status", "body"), [(200, "<html>"), (404, "{}"), (200, "[]")])
def test_a_server_of_something_else(status, body):
    with answering(status, body) as address:
        assert f"what answers there is none, HTTP status {status}" in refusal(address)


def test_another_version_of_ray_is_refused():
    with answering(200, version("2.59.1")) as address:
        assert f"runs Ray 2.59.1, but this is Ray {ray.__version__}" in refusal(address)


def test_an_open_cluster_is_for_those_who_say_so_loudly(own_address):
    with answering(200, version(ray.__version__), own_address) as address:
        text = refusal(address)
        assert "RAY_AUTH_MODE=token" in text and "--allow-open-cluster" in text
        said: list[str] = []
        assert JobServer(address, allow_open=True, warn=said.append).token is None
        assert len(said) == 1 and said[0].startswith("WARNING: ")
    with answering(200, version(ray.__version__)) as address:
        JobServer(address, allow_open=False, warn=pytest.fail)  # nobody else reaches it


def test_what_a_job_can_not_be_is_told_before_anybody_is_asked(capsys):
    for for_train, words in (
        (["--address", "10.0.0.1:6379"], "would lead the job to another cluster"),
        (["--run-dir", "out/x"], "would be lost with the job's folder"),
    ):
        assert submit.main(["--address", "http://127.0.0.1:1", "--", *for_train]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        submit.main(["--address", "http://127.0.0.1:1", "--", "--preset", "cartpoll"])
    assert caught.value.code == 2
    assert "preset 'cartpoll' is unknown" in capsys.readouterr().err
