"""A block in which the page was not open to its end is not taken for one in which it was."""

import json
import time

import pytest

from benchmarks.page_cost import open_page
from tests.dashboard.chromium import Server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    server = Server(tmp_path)
    yield server
    server.stop()


def show(folder, timestamp: float) -> None:
    environments = [{"timestamp": timestamp, "actor": 0, "env": 0}]
    (folder / "live.json").write_text(json.dumps({"environments": environments}))


def show_some(folder) -> None:
    for turn in range(3):
        show(folder, float(turn))
        time.sleep(1.2)


def test_a_page_that_is_shown_pictures_to_the_end_is_open(server, tmp_path):
    with open_page(server.address):
        show_some(tmp_path)


def test_a_page_that_is_sent_nothing_or_is_gone_is_not_open(server, tmp_path):
    with pytest.raises(RuntimeError, match="was sent 0 pictures"), open_page(server.address):
        time.sleep(1.2)
    with pytest.raises(RuntimeError, match=r"sent [2-9] pictures"), open_page(server.address):
        show_some(tmp_path)
        server.stop()
        time.sleep(0.5)
