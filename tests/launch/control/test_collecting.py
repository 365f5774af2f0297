"""Who gets a collect call, against a look at every env actor, over random histories."""

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from actors.acting import ActingConfig
from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.call_book import CallBook
from launch.control.child_health import State
from launch.control.collecting import ADDS_IN_FLIGHT_PER_ACTOR, Collecting
from launch.control.pacing import COLLECTS_IN_FLIGHT
from launch.control.progress import Progress
from launch.control.roster import Roster
from launch.control.runtime import Call, Child

N_ACTORS = 3
COLLECT_STEPS = 16
TOTAL_STEPS = 200


@dataclass
class Fleet:
    learner: Child
    shard: Child
    env_actors: dict[int, Child]

    def children(self) -> list[Child]:
        return [self.learner, self.shard, *self.env_actors.values()]


@dataclass
class Limiter:
    """Lets env actors play or not, as the test says."""

    is_open: bool = True

    def may_insert(self) -> bool:
        return self.is_open


class Live:
    """Nobody looks, and nothing was changed."""

    play = None

    def wish_for(self, child: Child) -> None: ...


class Reporter:
    def child_state(self, *fields: object) -> None: ...


@dataclass
class World:
    """A runtime whose children answer when told, and the parts of a controller around it."""

    seconds: float = 0.0
    answering: Call | None = None
    issued: list[Call] = field(default_factory=list)
    n_steps_lost: int = 0

    def __post_init__(self) -> None:
        config = Config(acting=ActingConfig(num_actors=N_ACTORS, collect_steps=COLLECT_STEPS))
        self.config = replace(config, total_env_steps=TOTAL_STEPS)
        actors = {i: Child(f"env-actor-{i}", "env_actor", None) for i in range(N_ACTORS)}
        self.fleet = Fleet(Child("learner", "learner", None), Child("r-0", "replay", None), actors)
        self.calls = CallBook(self, 300.0)
        self.roster = Roster(self.fleet, Reporter(), 10**6, self.now)
        self.roster.begin()
        self.limiter = Limiter()
        progress = Progress(N_ACTORS, self.now)
        self.collecting = Collecting(
            self.config,
            self.calls,
            self.fleet,
            self.roster,
            progress,
            self.limiter,
            Adapting(self.config.adaptive, progress, Reporter()),
            Live(),
        )
        self.pings = {child: self.calls.issue(child, "ping") for child in actors.values()}
        self.in_flight: dict[Call, None] = dict.fromkeys(self.pings.values())

    def now(self) -> float:
        return self.seconds

    def call(self, child, method, *args, deadline_s, with_payload):
        call = Call(child, method, self.seconds, deadline_s, answer=None, args=args)
        if method == "collect":
            self.issued.append(call)
            self.in_flight[call] = None
        return call

    def wait(self, calls, timeout_s):
        return [call for call in calls if call is self.answering]

    def answer(self, call: Call) -> None:
        """As in the controller's turn."""
        self.answering = call
        for ready in self.calls.ready():
            self.roster.answered(ready.child)
            self.collecting.answered(ready.child)
            if ready.method == "collect":
                self.collecting.collected(ready.child)
            del self.in_flight[ready]

    def fail(self, child: Child) -> None:
        lost = self.calls.drop(child)
        for call in lost:
            del self.in_flight[call]
            self.n_steps_lost += call.args[0] if call.method == "collect" else 0
        self.roster.failed(child)
        self.collecting.lost(lost)

    def bring_back(self, child: Child) -> None:
        self.seconds += 100.0  # longer than any back-off
        successor = Child(child.name, child.role, None)
        self.fleet.env_actors[child.index] = successor
        self.roster.restarted(successor)
        ping = self.calls.issue(successor, "ping")
        self.in_flight[ping] = None

    def may_collect(self, child: Child) -> bool:
        """The rule, by a look at everything."""
        in_flight = [call for call in self.in_flight if call.method == "collect"]
        n_steps = sum(call.args[0] for call in self.issued) - self.n_steps_lost
        n_adds = self.calls.n_in_flight("add")
        return (
            n_steps < TOTAL_STEPS
            and self.roster.state(child) is State.HEALTHY
            and sum(call.child is child for call in in_flight) < COLLECTS_IN_FLIGHT
            and n_adds < ADDS_IN_FLIGHT_PER_ACTOR * N_ACTORS
            and self.limiter.is_open
        )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.integers(0, 8)),
        st.tuples(st.sampled_from(("fail", "late")), st.integers(0, N_ACTORS - 1)),
        st.tuples(st.just("limit"), st.booleans()),
        st.tuples(st.just("adds"), st.sampled_from((0, ADDS_IN_FLIGHT_PER_ACTOR * N_ACTORS))),
    ),
    max_size=50,
)


@given(STEPS)
def test_whoever_may_play_is_asked_to_and_nobody_else(steps):
    world = World()
    for step, value in steps:
        child = world.fleet.env_actors.get(value) if step in ("fail", "late") else None
        if step == "answer" and value < len(world.in_flight):
            world.answer(list(world.in_flight)[value])
        elif step == "fail" and world.roster.state(child) is State.RESTARTING:
            world.bring_back(child)
        elif step == "fail":
            world.fail(child)
        elif step == "late":
            world.roster.overdue(child)
        elif step == "limit":
            world.limiter.is_open = value
        elif step == "adds":
            world.calls.drop(world.fleet.shard)
            for _ in range(value):
                world.calls.issue(world.fleet.shard, "add")
        may_have = {c.name for c in world.fleet.env_actors.values() if world.may_collect(c)}
        n_before = len(world.issued)
        world.collecting.issue()
        assert {call.child.name for call in world.issued[n_before:]} <= may_have
        assert not any(world.may_collect(c) for c in world.fleet.env_actors.values())
        states = {state: world.roster.all_in(state) for state in State}
        for state, children in states.items():
            held = [c for c in world.fleet.children() if world.roster.state(c) is state]
            assert {c.name for c in children} == {c.name for c in held}
    for child in world.fleet.env_actors.values():
        n_collects = world.calls.n_in_flight("collect", child=child)
        assert n_collects <= COLLECTS_IN_FLIGHT
