"""What fits on which nodes, against filling them one process at a time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.config import Config, load_preset, preset_names
from launch.control.capacity import (
    Amounts,
    Need,
    Room,
    actor_need,
    fit,
    other_needs,
)
from launch.control.resources import placement

QUARTERS = st.integers(0, 16).map(lambda n: n / 4)
AMOUNTS = st.builds(Amounts, QUARTERS, st.integers(0, 2).map(float), QUARTERS)
NODES = st.lists(AMOUNTS, min_size=1, max_size=4).map(
    lambda rooms: [Room(f"node-{i}", room) for i, room in enumerate(rooms)]
)
NEEDS = st.lists(AMOUNTS.map(lambda amounts: Need("learner", amounts)), max_size=4)
ACTOR = AMOUNTS.filter(lambda a: a.cpus + a.gpus + a.memory_gib > 0).map(
    lambda amounts: Need("env actor", amounts)
)


@given(NODES, NEEDS, ACTOR, st.integers(0, 40))
def test_no_node_gets_more_than_it_has_and_no_further_actor_would_fit(nodes, needs, actor, n):
    placed = fit(nodes, needs, actor, n)
    assert placed.n_actors == sum(placed.actors_by_node) <= n
    if any("learner" in line for line in placed.missing):
        assert placed.n_actors == 0 and not placed.is_whole
        return
    left = {node.name: node.amounts for node in nodes}
    assert len(placed.homes) == len(needs)
    for need, home in zip(
        sorted(needs, key=lambda need: -need.amounts.gpus), placed.homes, strict=True
    ):
        assert left[home].holds(need.amounts)
        left[home] = left[home].minus(need.amounts)
    for node, n_here in zip(nodes, placed.actors_by_node, strict=True):
        for _ in range(n_here):
            assert left[node.name].holds(actor.amounts)
            left[node.name] = left[node.name].minus(actor.amounts)
    has_more_room = any(room.holds(actor.amounts) for room in left.values())
    assert placed.is_whole == (placed.n_actors == n)
    assert placed.is_whole or not has_more_room


@given(NODES, ACTOR, st.integers(0, 40), AMOUNTS)
def test_one_more_node_never_holds_fewer_actors(nodes, actor, n, more):
    before = fit(nodes, [], actor, n).n_actors
    assert fit([*nodes, Room("more", more)], [], actor, n).n_actors >= before


@given(st.integers(1, 8), st.integers(0, 30), ACTOR)
def test_alike_nodes_get_alike_numbers(n_nodes, n_actors, actor):
    large = Amounts(1e6, 1e6, 1e6)
    nodes = [Room(f"node-{i}", large) for i in range(n_nodes)]
    by_node = fit(nodes, [], actor, n_actors).actors_by_node
    assert sum(by_node) == n_actors and max(by_node) - min(by_node) <= 1


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("is_served", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_cores_are_those_that_a_run_asks_ray_for(name, is_served, share):
    """One Ray is told of, the other a user is; they must not drift apart."""
    config = load_preset(name)
    config = replace(
        config,
        search=replace(config.search, mode="served" if is_served else "local"),
        reanalysis=replace(config.reanalysis, share=share),
        replay=replace(config.replay, num_shards=3),
    )
    others = sum(need.amounts.cpus for need in other_needs(config, "cuda"))
    actors = config.acting.num_actors * actor_need(config, "cpu").amounts.cpus
    wanted = placement(config, "cuda")
    assert others + actors == pytest.approx(wanted.num_cpus)
    assert sum(need.amounts.gpus for need in other_needs(config, "cuda")) <= wanted.num_gpus + 1e-9
    assert sum(need.amounts.gpus for need in other_needs(config, "cpu")) == 0.0


def test_what_is_missing_is_named_with_how_many_would_fit():
    config = Config()
    small = Room("small", Amounts(cpus=8.0, memory_gib=64.0))
    placed = fit([small], other_needs(config, "cpu"), actor_need(config, "cpu"), 100)
    assert not placed.is_whole and 0 < placed.n_actors < 8
    (line,) = placed.missing
    assert f"100 were asked for, {placed.n_actors} have room" in line and "short of CPUs" in line
    tight = Room("tight", Amounts(cpus=100.0, memory_gib=8.0))
    placed = fit([tight], other_needs(config, "cpu"), actor_need(config, "cpu"), 100)
    assert placed.missing and "short of memory" in placed.missing[0]


def test_a_learner_on_a_gpu_needs_a_node_that_has_one():
    config = Config()
    nodes = [Room(f"node-{i}", Amounts(cpus=64.0, memory_gib=256.0)) for i in range(2)]
    placed = fit(nodes, other_needs(config, "cuda"), actor_need(config, "cpu"), 4)
    assert placed.n_actors == 0 and any("of a GPU" in line for line in placed.missing)
    nodes.append(Room("gpu", Amounts(cpus=8.0, gpus=1.0, memory_gib=32.0)))
    placed = fit(nodes, other_needs(config, "cuda"), actor_need(config, "cpu"), 4)
    assert placed.is_whole and "gpu" in placed.homes
