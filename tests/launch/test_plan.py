"""The plan of a run: what a user is told of their own cluster, and of their own mistakes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.config import Config, ConfigError, load_preset, overlay
from launch.control.cluster_file import Measured, read_cluster
from launch.control.rates import rates_of
from launch.plan import main
from replay_service import GameSpec

SPEC = GameSpec((1, 64, 64), "uint8", 7, 2)
NODES = "nodes:\n- {name: head, cpus: 16, memory_gib: 64, price_per_hour: 2.0}\n"
MANY = NODES + "- {name: env, count: 10, cpus: 32, memory_gib: 128, price_per_hour: 1.0}\n"


def plan(tmp_path: Path, text: str, *words: str) -> int:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return main(["--preset", "cartpole", "--cluster", str(path), *words])


def test_a_plan_that_fits_says_where_and_what_it_costs(tmp_path, capsys):
    assert plan(tmp_path, MANY, "--num-actors", "200") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "200 env actors" in shown and "12.00" in shown and "a million env steps" in shown
    assert "does not fit" not in shown


def test_a_plan_that_does_not_fit_says_what_is_missing_and_how_many_would(tmp_path, capsys):
    assert plan(tmp_path, NODES, "--num-actors", "200") == 2
    shown = capsys.readouterr().out
    assert "200 were asked for, 14 have room" in shown and "short of CPUs" in shown
    assert plan(tmp_path, NODES, "--num-actors", "14") == 0


def test_a_gpu_that_no_node_has_is_missing(tmp_path, capsys):
    assert plan(tmp_path, MANY, "--device", "cuda") == 2
    assert "learner: no node has more left than 0.00 of a GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: [{cpu: 4, memory_gib: 8}]", ["nodes[0]", "'cpu'", "did you mean cpus"]),
        ("nodes: [{cpus: 4}]", ["nodes[0]", "memory_gib"]),
        ("nodes: [{cpus: many, memory_gib: 8}]", ["nodes[0]", "cpus", "number", "many"]),
        ("nodes: [{cpus: 4, memory_gib: 8, count: 0}]", ["count", "[1, ", "got 0"]),
        ("nodes: [{cpus: 4, memory_gib: 8, gpus: -1}]", ["gpus", "negative"]),
        ("nodes: [3]", ["nodes[0]", "settings"]),
        ("nodes: []", ["nodes", "list"]),
        ("{}", ["nodes", "list"]),
        ("machines: []", ["'machines'", "nodes and measured"]),
        (NODES + "measured: {env_step_ms: 0}", ["measured", "env_step_ms", "above 0"]),
        (NODES + "measured: {env_steps_ms: 3}", ["did you mean env_step_ms"]),
        (NODES + "measured: 3", ["measured", "settings"]),
        ("nodes: [", ["is no YAML"]),
        ("just text", ["must hold nodes"]),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, words):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_cluster(path)
    assert str(path) in str(error.value) and all(word in str(error.value) for word in words)


def test_a_missing_file_or_option_ends_with_a_message(tmp_path, capsys):
    for words in (["--cluster", str(tmp_path / "none.yaml")], ["--cluster"], []):
        with pytest.raises(SystemExit) as leaving:
            main(["--preset", "cartpole", *words])
        assert leaving.value.code == 2
        assert "docs/scaling.md" in capsys.readouterr().err


@settings(max_examples=60)
@given(
    st.integers(1, 5_000),
    st.floats(1.0, 1_000.0),
    st.floats(0.1, 1_000.0),
    st.sampled_from([load_preset(name) for name in ("cartpole", "mario", "mario-quick")]),
)
def test_rates_hold_together(n_actors, env_step_ms, update_ms, preset):
    config = overlay(preset, {"acting": {"num_actors": n_actors}}, where="test")
    measured = Measured(env_step_ms=env_step_ms, update_ms=update_ms)
    rates = rates_of(
        config, SPEC, measured, n_parameters=1_000, n_actor_nodes=3, price_per_hour=7.0
    )
    assert rates.env_steps == min(rates.play_env_steps, rates.learn_env_steps)
    assert rates.updates <= 1e3 / update_ms * (1 + 1e-9)
    ratio = rates.updates * config.learner.batch_size / rates.env_steps
    assert ratio == pytest.approx(config.limiter.samples_per_insert)
    assert rates.segments * config.acting.segment_length == pytest.approx(rates.env_steps)
    assert rates.n_shards * measured.shard_mb_per_s * 1e6 >= rates.replay_bytes
    assert rates.fan_out_bytes == pytest.approx(rates.versions * 4_000 * 3)
    hours = 1e6 / rates.env_steps / 3_600
    assert rates.price_per_million == pytest.approx(7.0 * hours)


def test_a_segment_has_the_bytes_that_were_measured():
    """0.88 MB for 200 positions of 64x64 gray (docs/benchmarks.md)."""
    config = overlay(Config(), {"acting": {"segment_length": 200}}, where="test")
    rates = rates_of(config, SPEC, Measured(), n_parameters=1, n_actor_nodes=1, price_per_hour=0.0)
    assert rates.segment_bytes == pytest.approx(880_000, rel=0.02)
    assert np.isfinite(rates.driver_percent)
