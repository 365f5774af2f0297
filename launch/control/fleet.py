"""The children of a run: what each is built from, on what resources, and how one is replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actors.acting import ActorIdentity
from actors.env_actor import EnvActor
from actors.evaluator_actor import EvaluatorActor, n_evaluation_games
from actors.player import PlayerConfig
from actors.prior.prior_engine_actor import MAX_CONCURRENT_CALLS, engine_env
from actors.reanalyze_actor import ReanalyzeActor
from actors.search import SearchSeat
from launch.config import Config
from launch.control.capacity import packed_need
from launch.control.resources import PACKED_ROLES, resources_of
from launch.control.runtime import Child, Links, Runtime
from launch.control.warm_start import ADAPTERS_FOLDER, served_rank
from launch.monitoring.monitor import MonitorConfig
from launch.monitoring.monitor_actor import MonitorActor
from learner.bad_numbers import BAD_BATCHES_FOLDER
from learner.language.language_learner_actor import LanguageLearnerActor
from learner.learner_actor import LearnerActor
from learner.weight_server_actor import WeightServerActor
from replay_service.replay_actor import ReplayActor
from replay_service.segment import GameSpec

SEARCH_SEED_STREAM = 2_000_003
REPLAY_SEED_STREAM = 5_000_011  # from one shard to the next
REANALYSIS_SEED_STREAM = 3_000_017


def search_seats(config: Config) -> list[int]:
    """Environments of each client of the search service: env actors in order, the evaluator."""
    acting = config.acting
    return [acting.envs_per_actor] * acting.num_actors + [n_evaluation_games(config.evaluation)]


class Fleet:
    """Starts children in the order in which the out-of-memory killer should spare them."""

    def __init__(
        self,
        config: Config,
        spec: GameSpec,
        runtime: Runtime,
        links: Links,
        *,
        run_dir: Path,
        device: str,
    ) -> None:
        self._config = config
        self._spec = spec
        self._runtime = runtime
        self._links = links
        self._run_dir = run_dir.resolve()
        self._device = device
        self._resources = resources_of(config, device)
        self.packed: frozenset[str] = frozenset()  # names of those that share a node
        self.env_actors: dict[int, Child] = {}
        self.incarnations: dict[int, int] = {}
        self.prior_engines: list[Child] = []
        self.search: Child | None = None
        self.monitor_node = ""  # where the monitor is started, if there is room
        self._evaluator_incarnation = -1
        self.language_learner: Child | None = None
        self.reanalyser: Child | None = None

    def start(self, incarnations: dict[int, int]) -> None:
        """Starts every child; `incarnations` come from a checkpoint, so that ids never repeat."""
        config = self._config
        if config.placement.pack:
            self._pack()
        self.replays = [self._start_replay(i) for i in range(config.replay.num_shards)]
        self.weight_server = self._runtime.start(
            "weight-server",
            "weight_server",
            WeightServerActor,
            {},
            self._resources["weight_server"],
        )
        self.learner = self._start_learner()
        if config.prior.enabled:
            n_engines = config.prior.num_engines
            self.prior_engines = [self._start_prior_engine(i) for i in range(n_engines)]
            if config.language.enabled:
                self.language_learner = self._start_language_learner()
        if config.search.mode == "served":
            self.search = self._start_search()
        self.monitor = self._start_monitor()
        for index in range(config.acting.num_actors):
            self.incarnations[index] = incarnations.get(index, -1)
            self.start_env_actor(index)
        self.evaluator = self.start_evaluator()
        if config.reanalysis.share > 0.0:
            self.reanalyser = self._start_reanalyser()

    def _pack(self) -> None:
        """Where no node is large enough, Ray places each by itself."""
        wanted = packed_need(self._config, self._device).amounts
        nodes = self._runtime.nodes()
        if not any(n.num_cpus >= wanted.cpus and n.num_gpus >= wanted.gpus for n in nodes):
            return
        replays = [f"replay-{i}" for i in range(self._config.replay.num_shards)]
        roles = {"learner": "learner"} | dict.fromkeys(replays, "replay")
        roles["weight-server"] = "weight_server"
        assert set(roles.values()) == set(PACKED_ROLES)
        self._runtime.pack({name: self._resources[role] for name, role in roles.items()})
        self.packed = frozenset(roles)

    def children(self) -> list[Child]:
        """Every child that is running now."""
        maybe = (self.language_learner, self.search, self.reanalyser)
        optional = [child for child in maybe if child is not None]
        engines = self.prior_engines
        fixed = [*self.replays, self.weight_server, self.learner, *engines, *optional, self.monitor]
        return [*fixed, *self.env_actors.values(), self.evaluator]

    def is_current(self, env_actor: Child) -> bool:
        """Whether no successor has taken its place yet."""
        return self.env_actors.get(env_actor.index) is env_actor

    def start_env_actor(self, index: int) -> Child:
        """Starts env actor `index` with a new incarnation, in place of the one it may replace."""
        self.incarnations[index] += 1
        has_gpu = self._resources["env_actor"].num_gpus > 0.0
        identity = ActorIdentity(
            self._run_dir.name, index, self.incarnations[index], self._config.seed
        )
        self.env_actors[index] = self._runtime.start(
            f"env-actor-{index}",
            "env_actor",
            EnvActor,
            {
                "player": self._player_config("cuda" if has_gpu else "cpu"),
                "acting": self._config.acting,
                "targets": self._config.targets,
                "identity": identity,
                "weight_source": self._links.weight_source(self.weight_server),
                "prior_transport": self._prior_transport(index),
                "seat": self._seat(index, self.incarnations[index]),
                "keeps_advantages": self._config.replay.advantages,
            },
            self._resources["env_actor"],
        )
        return self.env_actors[index]

    def replace(self, child: Child) -> Child:
        """Starts a new child in place of a stopped one; a learner begins without its state."""
        if child.role == "env_actor":
            return self.start_env_actor(child.index)
        if child.role == "evaluator":
            self.evaluator = self.start_evaluator()
            return self.evaluator
        if child.role == "reanalyser":
            self.reanalyser = self._start_reanalyser()
            return self.reanalyser
        if child.role == "learner":
            self.learner = self._start_learner()
            return self.learner
        if child.role == "language_learner":
            self.language_learner = self._start_language_learner()
            return self.language_learner
        assert child.role == "monitor", child.role
        self.monitor = self._start_monitor()
        return self.monitor

    def _start_monitor(self) -> Child:
        staying = [node.node_id for node in self._runtime.nodes() if not node.is_draining]
        node_id = self.monitor_node if self.monitor_node in staying else ""
        return self._runtime.start(
            "monitor",
            "monitor",
            MonitorActor,
            {
                "run_dir": self._run_dir,
                "config": MonitorConfig(),
                "rotation": self._config.monitoring.rotation,
            },
            replace(self._resources["monitor"], node_id=node_id),
        )

    def start_evaluator(self) -> Child:
        self._evaluator_incarnation += 1
        return self._runtime.start(
            "evaluator",
            "evaluator",
            EvaluatorActor,
            {
                "player": self._player_config(),
                "evaluation": self._config.evaluation,
                "seed": self._config.seed,
                "weight_source": self._links.weight_source(self.weight_server),
                "prior_transport": self._prior_transport(self._config.acting.num_actors),
                "seat": self._seat(self._config.acting.num_actors, self._evaluator_incarnation),
            },
            self._resources["evaluator"],
        )

    def _start_reanalyser(self) -> Child:
        config = self._config
        return self._runtime.start(
            "reanalyser",
            "reanalyser",
            ReanalyzeActor,
            {
                "player": self._player_config(self._device),
                "reanalysis": config.reanalysis,
                "spec": self._spec,
                "unroll_steps": config.targets.unroll_steps,
                "seed": config.seed + REANALYSIS_SEED_STREAM,
                "prior_transport": self._prior_transport(config.acting.num_actors + 1),
                "weight_source": self._links.weight_source(self.weight_server),
                "source": self._links.reanalysis_source(self.replays),
            },
            self._resources["reanalyser"],
        )

    def _player_config(self, device: str = "cpu") -> PlayerConfig:
        """GPUs are not shared with the evaluator, hence the default."""
        config = self._config
        return PlayerConfig(
            env=config.env,
            search=config.search,
            prior=config.prior,
            model=config.model,
            discount=config.targets.discount,
            device=device,
        )

    def _start_prior_engine(self, index: int) -> Child:
        config = self._config
        return self._runtime.start(
            f"prior-engine-{index}",
            "prior_engine",
            self._links.prior_engine_class,
            {
                "config": config.prior,
                "max_lora_rank": served_rank(config),
                "adapters_dir": self._run_dir / ADAPTERS_FOLDER,
                "device": self._device,
            },
            replace(
                self._resources["prior_engine"],
                max_concurrency=MAX_CONCURRENT_CALLS,
                env_vars=engine_env(self._device),
            ),
        )

    def _start_search(self) -> Child:
        config = self._config
        n_envs = search_seats(config)
        return self._runtime.start(
            "search",
            "search",
            self._links.search_class,
            {
                "wait_ms": config.search.served_wait_ms,
                "search": config.search,
                "injection": config.prior.injection,
                "model": config.model,
                "spec": self._spec,
                "discount": config.targets.discount,
                "device": self._device,
                "seed": config.seed + SEARCH_SEED_STREAM,
                "weights": self._links.weight_source(self.weight_server),
                "n_envs": n_envs,
            },
            replace(self._resources["search"], max_concurrency=2 * len(n_envs) + 2),
        )

    def _seat(self, client: int, incarnation: int) -> SearchSeat | None:
        if self.search is None:
            return None
        return SearchSeat(self._links.search_transport(self.search), client, incarnation)

    def _prior_transport(self, client: int) -> object:
        """client: spreads those who ask over the engines"""
        if not self.prior_engines:
            return None
        deadline_s = self._config.prior.deadline_s
        return self._links.prior_transport(self.prior_engines, client, deadline_s)

    def _start_replay(self, shard: int) -> Child:
        config = self._config
        return self._runtime.start(
            f"replay-{shard}",
            "replay",
            ReplayActor,
            {
                "config": config.replay.of_one_shard,
                "targets": config.targets,
                "spec": self._spec,
                "seed": config.seed + shard * REPLAY_SEED_STREAM,
                "shard": shard,
            },
            self._resources["replay"],
        )

    def _start_learner(self) -> Child:
        config = self._config
        return self._runtime.start(
            "learner",
            "learner",
            LearnerActor,
            {
                "config": config.learner,
                "model_config": config.model,
                "targets": config.targets,
                "spec": self._spec,
                "device": self._device,
                "seed": config.seed,
                "source": self._links.batch_source(
                    self.replays, config.replay, config.learner.batch_size, config.seed
                ),
                "sink": self._links.weight_sink(self.weight_server),
                "bad_batches_dir": self._run_dir / BAD_BATCHES_FOLDER,
            },
            self._resources["learner"],
        )

    def _start_language_learner(self) -> Child:
        config = self._config
        return self._runtime.start(
            "language-learner",
            "language_learner",
            LanguageLearnerActor,
            {
                "config": config.language,
                "model": config.prior.model,
                "prompt": config.prior.prompt,
                "seed": config.seed,
                "source": self._links.text_source(
                    self.replays, config.language.batch_size, config.seed
                ),
                "adapters_dir": self._run_dir / ADAPTERS_FOLDER,
                "bad_batches_dir": self._run_dir / BAD_BATCHES_FOLDER,
                "device": "cpu",
            },
            self._resources["language_learner"],
        )
