"""What is said and refused about the machines that a run is to live on, without any."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from launch.config import Config, ConfigError, load_preset, overlay
from launch.control.capacity import Amounts, Room
from launch.control.cluster_look import can_grow
from launch.control.ground import UNBOUNDED_GIB, Ground, check_ground, device_on, this_machine
from launch.control.resources import placement, resources_of

PRESET = load_preset("cartpole")  # asks for 1.4 CPUs beside its env actors


def ground(*cpus: float, gpus: float = 0.0, **changes: object) -> Ground:
    nodes = tuple(Room(f"node-{i}", Amounts(n, gpus, UNBOUNDED_GIB)) for i, n in enumerate(cpus))
    made = Ground("the cluster", nodes, sum(cpus), gpus * len(cpus))
    return replace(made, **changes)


def config_with(n_actors: int, **changes: object) -> Config:
    return overlay(PRESET, {"acting": {"num_actors": n_actors}, **changes}, where="test")


def said(config: Config, there: Ground, device: str = "cpu") -> str:
    lines: list[str] = []
    check_ground(config, device, there, lines.append)
    return "\n".join(lines)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
)
def test_a_run_is_refused_exactly_where_too_few_actors_have_room(cpus, n_actors, least, packs):
    n_actors = max(n_actors, least)
    changes = {"control": {"min_actors": least}, "placement": {"pack": packs}}
    config, there = config_with(n_actors, **changes), ground(*cpus)
    largest = max(cpus)
    # The others take 1 + 4 * 0.1 where there is a node for the learner; actors have whole cores.
    if largest < 1.0:
        with pytest.raises(ConfigError, match="0 env actors would fit"):
            said(config, there)
        return
    try:
        text = said(config, there)
    except ConfigError as refusal:
        assert f"control.min_actors is {least}" in str(refusal)
        assert "nothing was started" in str(refusal)
        n_fit = int(str(refusal).rpartition("\n")[2].split()[0])
        assert n_fit < least
        assert n_fit >= sum(int(n) for n in cpus) - 3  # that much the others can spoil
        return
    n_fit = int(text.partition("placement: ")[2].partition("; ")[2].split()[0])
    assert least <= n_fit <= min(n_actors, sum(cpus) - 1.4)
    # Of those that a run can do without, one may have no room where all env actors have.
    assert ("begins with what has room" in text) == ("no room for" in text)
    assert "no room for" in text or n_fit == n_actors


def test_an_autoscaler_is_waited_for_and_a_full_cluster_too():
    config = config_with(8, control={"min_actors": 8})
    with pytest.raises(ConfigError, match="2 env actors would fit"):
        said(config, ground(4.0))
    text = said(config, ground(4.0, can_grow=True))
    assert "waits up to 300 s for the cluster's autoscaler" in text and "6 more need 6 CPUs" in text
    assert "4 CPUs and 0 GPUs are in use now" in said(config, ground(10.0, free_cpus=6.0))


@pytest.mark.parametrize(
    ("state_version", "node_type", "report", "grows"),
    [
        (0, "", None, False),
        (0, "", {"node_1234": 1}, False),  # the watcher of a head that was started by hand
        (0, "", {"ray.worker.default": 1}, True),
        (0, "workers", None, False),  # somebody names nodes, but no autoscaler is there
        (3, "ray.head.default", None, True),
        (3, "node_1234", None, False),
    ],
)
def test_an_autoscaler_is_told_by_types_of_nodes(state_version, node_type, report, grows):
    """As Ray 2.60 answers, seen on heads with its second autoscaler and with none."""
    status = GetClusterStatusReply()
    status.autoscaling_state.autoscaler_state_version = state_version
    status.cluster_resource_state.node_states.add(ray_node_type_name=node_type)
    told = json.dumps({"autoscaler_report": {"active_nodes": report}}).encode() if report else None
    assert can_grow(status, told) == grows


def test_a_machine_of_ones_own_may_have_fewer_cores_than_processes_but_not_fewer_gpus():
    here = this_machine()
    there = ground(2.0, is_local=True)
    assert "processes take turns" in said(config_with(40), there)
    assert here.num_cpus >= 1 and "this machine" in said(config_with(1), here)
    several = config_with(1, learner={"n_devices": 4})
    with pytest.raises(ConfigError, match=r"2.00 of a GPU of the 4.00 that it needs"):
        said(several, ground(2.0, gpus=2.0, is_local=True), "cuda")
    assert "asks for 5.4 CPUs and 4 GPUs" in said(several, ground(16.0, gpus=4.0), "cuda")


def test_the_learners_node_holds_replay_too_if_one_is_large_enough():
    assert "together;" in said(config_with(1), ground(0.5, 3.0))
    assert "since no node has room" in said(config_with(1), ground(1.0, 1.0, 1.0))
    apart = config_with(1, placement={"pack": False})
    assert "where Ray finds room;" in said(apart, ground(8.0))


def test_auto_takes_a_gpu_only_where_the_nodes_have_one(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("torch.version.cuda", "13.0")  # a build for GPUs, whatever is here
    assert device_on(ground(4.0, gpus=1.0), "auto", lines.append) == "cuda"
    assert device_on(ground(4.0), "auto", lines.append) == "cpu"
    monkeypatch.setattr("torch.version.cuda", None)
    assert device_on(ground(4.0, gpus=1.0), "auto", lines.append) == "cpu"
    assert device_on(ground(4.0, gpus=1.0), "cuda", lines.append) == "cuda"
    assert device_on(ground(4.0, can_grow=True), "cuda", lines.append) == "cuda"
    with pytest.raises(ConfigError, match="no node of the cluster has a GPU"):
        device_on(ground(4.0, 8.0), "cuda", lines.append)


def test_shares_of_gpus_are_those_of_the_configuration():
    """The defaults share one GPU, as they did before there were settings."""
    served = {"search": {"mode": "served"}, "reanalysis": {"share": 0.5}}
    served |= {"prior": {"enabled": True, "num_engines": 2}}
    config = config_with(4, **served)
    of_one = resources_of(config, "cuda")
    assert of_one["learner"].num_gpus == 0.4 and of_one["prior_engine"].num_gpus == 0.15
    assert (of_one["search"].num_gpus, of_one["reanalyser"].num_gpus) == (0.2, 0.1)
    assert of_one["env_actor"].num_gpus == 0.0 and placement(config, "cuda").num_gpus == 1.0
    assert all(asked.num_gpus == 0.0 for asked in resources_of(config, "cpu").values())
    shares = {"env_actor_gpus": 0.25, "prior_engine_gpus": 2.0, "learner_gpus": 1.0}
    wide = overlay(config, {"placement": shares}, where="test")
    assert resources_of(wide, "cuda")["prior_engine"].num_gpus == 1.0
    assert resources_of(wide, "cuda")["env_actor"].num_gpus == 0.0, "a service searches for them"
    local = overlay(wide, {"search": {"mode": "local"}}, where="test")
    assert resources_of(local, "cuda")["env_actor"].num_gpus == 0.25
    assert placement(local, "cuda").num_gpus == 5.0  # 1 + 2 + 0.1 + 4 * 0.25, in whole ones


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"placement": {"learner_gpus": 1.5}}, ["placement.learner_gpus", "(0, 1]", "1.5"]),
        ({"placement": {"env_actor_gpus": -0.1}}, ["placement.env_actor_gpus", "[0, 1]"]),
        ({"placement": {"prior_engine_gpus": 0.0}}, ["prior_engine_gpus must be above 0"]),
        ({"placement": {"prior_engine_gpus": 3.0}}, ["prior.num_engines", "3.0"]),
        ({"learner": {"n_devices": 0}}, ["learner.n_devices", "[1, learner.batch_size]", "got 0"]),
        ({"learner": {"n_devices": 4096}}, ["learner.n_devices", "got 4096"]),
        ({"learner": {"n_devices": 2}, "runtime": "serial"}, ["--runtime ray", "got 2"]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ConfigError) as error:
        overlay(Config(), changes, where="test")
    assert all(word in str(error.value) for word in words), error.value
