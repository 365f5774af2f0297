"""The real controller with many children that are none, in virtual time: nothing is lost, nobody is
asked for too much, and no turn costs more because the fleet is larger.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))  # benchmarks are scripts, not a package

from benchmarks.simulated_children import Costs
from benchmarks.simulated_runtime import Faults, SimulatedRuntime
from benchmarks.simulated_scale import Cell, runtime_of, simulate
from launch.control.collecting import ADDS_IN_FLIGHT_PER_ACTOR
from launch.control.pacing import COLLECTS_IN_FLIGHT
from launch.control.runtime import Call, CallFailed, Child, Resources

NO_FAULTS = Faults(process_hours=0.0, node_hours=0.0)


def cell_of(n_actors: int, *, seconds: float, faults: Faults = NO_FAULTS, seed: int = 0) -> Cell:
    return Cell(
        n_actors=n_actors,
        seconds=seconds,
        warm_up=40.0,
        faults=faults,
        costs=Costs(),
        seed=seed,
        actors_per_node=10,
        counts_driver_time=False,
    )


@dataclass(slots=True)
class Watched(SimulatedRuntime):
    """Keeps books of its own on what the controller asks for and is told."""

    in_flight: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    n_adds: int = 0
    most_collects: int = 0
    most_adds: int = 0
    n_steps_answered: int = 0
    n_positions_answered: int = 0

    def call(self, child, method, *args, deadline_s, with_payload=False) -> Call:
        assert not child.handle.is_stopped, f"{child.name} was stopped"
        self.in_flight[_of(child, method)] += 1
        self.n_adds += method == "add"
        n_collects = self.in_flight[_of(child, "collect")]
        self.most_collects = max(self.most_collects, n_collects)
        self.most_adds = max(self.most_adds, self.n_adds)
        return SimulatedRuntime.call(
            self, child, method, *args, deadline_s=deadline_s, with_payload=with_payload
        )

    def value(self, call: Call) -> object:
        self.in_flight[_of(call.child, call.method)] -= 1
        self.n_adds -= call.method == "add"
        answer = SimulatedRuntime.value(self, call)
        if call.method == "collect":
            self.n_steps_answered += answer.env_steps
        elif call.method == "add":
            self.n_positions_answered += answer.n_positions
        return answer


def _of(child: Child, method: str) -> tuple[str, int, str]:
    return child.name, child.handle.pid, method


def watched(cell: Cell) -> Watched:
    plain = runtime_of(cell)
    return Watched(plain.children, plain.rng, plain.faults, plain.n_nodes, False)


def test_a_fleet_that_keeps_failing_plays_on_and_every_step_is_counted(tmp_path):
    """Some two faults a minute among 30 actors; three nodes, each of which goes now and then."""
    faults = Faults(process_hours=0.3, hang_share=0.2, node_hours=0.25, notice_s=60.0)
    faults = replace(faults, mortal=("env_actor", "evaluator", "monitor", "weight_server"))
    cell = cell_of(30, seconds=600.0, faults=faults, seed=1)
    runtime = watched(cell)
    outcome = simulate(cell, tmp_path / "run", runtime)
    assert outcome.n_faults >= 10 and outcome.n_restarts >= 5
    assert outcome.env_steps == runtime.n_steps_answered
    assert outcome.env_steps == runtime.n_positions_answered  # an add for every collect
    assert runtime.most_collects == COLLECTS_IN_FLIGHT
    assert runtime.most_adds <= ADDS_IN_FLIGHT_PER_ACTOR * cell.n_actors
    # Whoever starts anew is away for 15 s, whoever hangs for two minutes.
    assert outcome.env_steps_per_s >= 0.8 * outcome.ideal_env_steps_per_s


def test_without_faults_all_play_all_the_time(tmp_path):
    outcome = simulate(cell_of(30, seconds=240.0), tmp_path / "run")
    assert outcome.n_faults == 0 and outcome.n_restarts == 0
    # One call's time varies, hence not exactly 1.
    assert outcome.env_steps_per_s == pytest.approx(outcome.ideal_env_steps_per_s, rel=0.1)


def test_a_failed_call_says_so():
    runtime = runtime_of(cell_of(1, seconds=1.0, faults=Faults(process_hours=1e-6, hang_share=0.0)))
    child = runtime.start("evaluator", "evaluator", object, {}, Resources())
    call = runtime.call(child, "ping", deadline_s=60.0)
    assert runtime.wait([call], 60.0) == [call]
    with pytest.raises(CallFailed) as error:
        runtime.value(call)
    assert error.value.died
