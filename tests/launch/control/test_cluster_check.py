"""A cluster's address where there is no cluster; tests/e2e/test_jobs.py has one."""

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest

from launch import train
from launch.config import ConfigError
from launch.control import cluster_check
from launch.control.cluster_check import check_cluster


def refusal(address: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_cluster(address, allow_open=True, warn=pytest.fail)
    return str(caught.value)


def test_an_address_where_no_cluster_is(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "0")
    monkeypatch.setattr(cluster_check, "PROBE_S", 0.5)
    with socket.create_server(("0.0.0.0", 0)) as silent:
        port = silent.getsockname()[1]
        assert "leads to no Ray cluster" in refusal(f"127.0.0.1:{port}")
    assert "Connection refused" in refusal(f"127.0.0.1:{port}")
    assert "no-such-host.invalid" in refusal("no-such-host.invalid:6379")
    assert "'garbage' leads to no Ray cluster" in refusal("garbage")
    assert "launch/submit.py" in refusal("ray://127.0.0.1:10001")


def test_a_run_with_a_wrong_address_leaves_nothing_behind(tmp_path, capsys):
    with socket.create_server(("0.0.0.0", 0)) as unused:
        port = unused.getsockname()[1]
    arguments = ["--preset", "cartpole", "--device", "cpu", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as caught:
        train.main([*arguments, "--address", f"127.0.0.1:{port}"])
    assert caught.value.code == 2
    assert "leads to no Ray cluster" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_open_cluster_that_others_reach_is_refused():
    """Any server that answers without asking who calls stands for the control service."""
    addresses = [a for each in psutil.net_if_addrs().values() for a in each]
    own = [a.address for a in addresses if a.family == socket.AF_INET]
    own = [address for address in own if not address.startswith("127.")]
    if not own:
        pytest.skip("this machine has none but loopback addresses")

    class AnswersAll(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[AnswersAll()])
    port = server.add_insecure_port(f"{own[0]}:0")
    server.start()
    try:
        with pytest.raises(ConfigError, match=r"RAY_AUTH_MODE=token.*--allow-open-cluster"):
            check_cluster(f"{own[0]}:{port}", allow_open=False, warn=pytest.fail)
    finally:
        server.stop(None)
