"""The acting loop of one env actor: E environments, batched search, LLM priors in the background.

Plain Python, one thread. The environments are split in two halves where there is something to wait
for, an LLM prior or a search service: while one half waits, the other half steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.collect_report import CollectReport, EpisodeRecord, end_reason, is_clear
from actors.live_view import LiveViews, ViewWish
from actors.play_settings import MAX_TEMPERATURE, PlaySettings
from actors.player import Player
from actors.prior.client import PendingPrior
from actors.search import SearchClient, SearchOutput
from actors.search.client import PendingSearch
from actors.segment_builder import SegmentBuilder, Step
from learner.language.prompt import mask_options
from learner.weights import NO_VERSION, WeightSource
from replay_service.segment import Segment, SegmentHeader
from replay_service.targets import TargetConfig

MAX_ENVS_PER_ACTOR = 1_024


@dataclass(frozen=True, slots=True)
class ActingConfig:
    num_actors: int = 2  # env actor processes; each holds a copy of the world model
    envs_per_actor: int = 4  # environments searched as one batch; more fills the model better
    segment_length: int = 40  # trainable steps per segment; longer means fewer, larger messages
    collect_steps: int = 32  # env steps per collect call, over all envs; longer means older weights
    temperature: float = 1.0  # exponent 1/temperature on visit counts; lower is greedier
    temperature_final: float = 0.25  # reached after temperature_decay_steps
    temperature_decay_steps: int = 0  # env steps of the whole run; 0 keeps `temperature`

    def __post_init__(self) -> None:
        for name in ("num_actors", "envs_per_actor", "segment_length", "collect_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"acting.{name} must be at least 1, got {getattr(self, name)}; "
                    "a run needs someone to act"
                )
        if self.envs_per_actor > MAX_ENVS_PER_ACTOR:
            raise ValueError(
                f"acting.envs_per_actor must be at most {MAX_ENVS_PER_ACTOR}, "
                f"got {self.envs_per_actor}; raise acting.num_actors instead"
            )
        for name in ("temperature", "temperature_final"):
            if not 0.0 < getattr(self, name) <= MAX_TEMPERATURE:
                raise ValueError(f"acting.{name} must lie in (0, 10], got {getattr(self, name)}")
        if self.temperature_decay_steps < 0:
            raise ValueError(
                "acting.temperature_decay_steps must not be negative, "
                f"got {self.temperature_decay_steps}"
            )

    def temperature_at(self, env_steps: int) -> float:
        """Linear decay from `temperature` to `temperature_final` over the run's env steps."""
        if self.temperature_decay_steps == 0:
            return self.temperature
        share = min(1.0, env_steps / self.temperature_decay_steps)
        return self.temperature + share * (self.temperature_final - self.temperature)


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Who acts: goes into segment headers and seeds."""

    run_id: str
    actor: int
    incarnation: int
    seed: int  # of the run

    def generator(self, stream: int) -> np.random.Generator:
        """Random stream derived from (run seed, actor, incarnation, stream)."""
        return np.random.default_rng([self.seed, self.actor, self.incarnation, stream])


class ActingLoop:
    """Plays E games with search and cuts their steps into segments."""

    def __init__(
        self,
        *,
        player: Player,
        weight_source: WeightSource,
        config: ActingConfig,
        targets: TargetConfig,
        identity: ActorIdentity,
        keeps_advantages: bool = False,
    ) -> None:
        """keeps_advantages: whether replay wants those of the search (`replay.advantages`)."""
        self._player = player
        self._games = player.games
        self._planner = player.planner
        self._prior = player.prior
        self._weight_source = weight_source
        self._config = config
        self._identity = identity
        self._keeps_advantages = keeps_advantages
        self._sequence = 0
        self._is_new = True
        self._weight_version = NO_VERSION
        n_envs = len(self._games)
        self._builders = [
            SegmentBuilder(
                self._games[0].spec, targets, config.segment_length, self._header_factory(env_id)
            )
            for env_id in range(n_envs)
        ]
        self._last_action = np.full(n_envs, -1, np.int64)
        self._episode_reward = np.zeros(n_envs)
        self._episode_length = np.zeros(n_envs, np.int64)
        self._max_x = [0] * n_envs
        waits = self._prior is not None or isinstance(self._planner, SearchClient)
        n_halves = 2 if waits and n_envs > 1 else 1
        self._halves = np.array_split(np.arange(n_envs), n_halves)
        self._turn = 0
        self._views = LiveViews(self._games)
        self._play = PlaySettings()
        self._asked: list[PendingPrior | None] = [None] * n_halves
        self._begun: list[PendingSearch | None] = [None] * n_halves
        for env_id, game in enumerate(self._games):
            self._builders[env_id].start_episode(game.reset())
        for half in range(n_halves):
            self._ask_prior(half)

    def collect(
        self,
        n_steps: int,
        env_steps_so_far: int,
        wish: ViewWish | None = None,
        play: PlaySettings | None = None,
    ) -> tuple[CollectReport, list[Segment]]:
        """Plays at least `n_steps` environment steps over all envs, after pulling new weights.

        `env_steps_so_far` is the run's count and drives the schedules. What is wished for makes the
        report, a few kB without, larger by some kB an environment. Returns the report and the
        segments completed meanwhile; unfinished segments stay here for the next call.
        """
        started = time.perf_counter()
        self._views.want(wish)
        self._play = play or PlaySettings()
        report = CollectReport()
        segments: list[Segment] = []
        version = self._player.pull_weights(self._weight_source, self._weight_version)
        self._weight_version = version
        report.add_seconds("pull", started)
        while report.env_steps < n_steps:
            self._play_half(self._turn, env_steps_so_far + report.env_steps, report, segments)
            self._turn = (self._turn + 1) % len(self._halves)
        if self._is_new:
            report.made_s, self._is_new = self._player.made_s, False
        report.payload_bytes = sum(segment.n_bytes for segment in segments)
        report.weight_version = self._weight_version
        report.cache = self._planner.cache_stats(reset=True)
        if self._prior is not None:
            report.prior = self._prior.stats()
        report.seconds["total"] = time.perf_counter() - started
        return report, segments

    def close(self) -> None:
        for game in self._games:
            game.close()

    def _ask_prior(self, half: int) -> None:
        if self._prior is None:
            return
        games = [self._games[env_id] for env_id in self._halves[half]]
        self._asked[half] = self._prior.ask(
            prompts=[game.prompt() or "" for game in games],
            options=[game.option_texts() for game in games],
            legal=[game.legal() for game in games],
            env_ids=self._halves[half],
            keys=[game.coarse_key() for game in games],
        )

    def _play_half(
        self, half: int, env_steps: int, report: CollectReport, segments: list[Segment]
    ) -> None:
        env_ids = self._halves[half]
        asked = self._asked[half]
        output = self._search(half, env_steps, report)
        prior = asked.collect() if asked is not None else None  # waited for by the search
        mark = time.perf_counter()
        report.views += self._views.take(env_ids, output, asked)
        for row, env_id in enumerate(env_ids):
            llm_used = asked is not None and bool(prior is not None and prior.available[row])
            segment = self._step_env(
                int(env_id),
                int(output.action[row]),
                output,
                row,
                asked if llm_used else None,
                report,
            )
            if segment is not None:
                segments.append(segment)
        mark = report.add_seconds("env", mark)
        self._weight_version = output.weight_version
        self._ask_prior(half)
        report.add_seconds("prior_ask", mark)
        report.env_steps += len(env_ids)
        report.add_search(output)
        if prior is not None:
            report.add_prior(output.policy, prior.probabilities, prior.available)

    def _search(self, half: int, env_steps: int, report: CollectReport) -> SearchOutput:
        """What was found for one half; where a service searches, the other half is sent there
        next, so that it is searched while this one steps.
        """
        planner = self._planner
        if not isinstance(planner, SearchClient):
            call = self._search_call(half, env_steps, report)
            mark = time.perf_counter()
            output = planner.search(**call)
            report.add_seconds("search", mark)
            row = self._views.tree_row(self._halves[half])
            if row is not None:
                tree = planner.draw_tree(int(self._halves[half][row]))
                output = replace(output, tree=tree, tree_row=row)
            return output
        pending = self._begun[half] or self._begin(half, env_steps, report)
        self._begun[half] = None
        mark = time.perf_counter()
        output = pending.result()
        report.add_seconds("search_wait", mark)
        other = (half + 1) % len(self._halves)
        if other != half:
            self._begun[other] = self._begin(other, env_steps, report)
        return output

    def _begin(self, half: int, env_steps: int, report: CollectReport) -> PendingSearch:
        assert isinstance(self._planner, SearchClient)
        row = self._views.tree_row(self._halves[half])
        return self._planner.begin(**self._search_call(half, env_steps, report), shows_tree=row)

    def _search_call(self, half: int, env_steps: int, report: CollectReport) -> dict[str, Any]:
        """Arguments of the search for one half; waits for its priors."""
        env_ids, asked = self._halves[half], self._asked[half]
        mark = time.perf_counter()
        prior = asked.collect() if asked is not None else None
        report.add_seconds("prior_wait", mark)
        legal_rows = [self._games[env_id].legal() for env_id in env_ids]
        return {
            "env_ids": env_ids,
            "obs": np.stack([self._builders[env_id].observation() for env_id in env_ids]),
            "last_action": self._last_action[env_ids],
            "legal": None
            if legal_rows[0] is None
            else np.stack([row for row in legal_rows if row is not None]),
            "mix": prior,
            "add_noise": self._play.exploration,
            "env_steps": env_steps,
            "temperature": self._play.temperature_or(self._config.temperature_at(env_steps)),
            "n_simulations": self._play.n_simulations,
        }

    def _step_env(
        self,
        env_id: int,
        action: int,
        output: SearchOutput,
        row: int,
        asked: PendingPrior | None,
        report: CollectReport,
    ) -> Segment | None:
        game = self._games[env_id]
        legal = game.legal()
        prompt = (game.prompt() or "") if asked is not None else ""
        options = mask_options(game.option_texts(), legal) if asked is not None else ()
        frame, reward, terminated, truncated, info = game.step(action)
        step = Step(
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated and not terminated,
            policy=output.policy[row],
            root_value=float(output.root_value[row]),
            legal=legal,
            prompt=prompt,
            options=options,
            weight_version=output.weight_version,
            prior_version=int(asked.versions[row]) if asked is not None else -1,
            advantage=output.advantage(row) if self._keeps_advantages else None,
        )
        segment = self._builders[env_id].add(step, frame)
        self._last_action[env_id] = action
        self._views.moved(env_id, step.root_value, reward)
        self._episode_reward[env_id] += reward
        self._episode_length[env_id] += 1
        self._max_x[env_id] = max(self._max_x[env_id], int(info.get("max_x", 0)))
        if terminated or truncated:
            report.episodes.append(self._finish_episode(env_id, info, terminated))
        return segment

    def _finish_episode(
        self, env_id: int, info: dict[str, object], terminated: bool
    ) -> EpisodeRecord:
        game = self._games[env_id]
        record = EpisodeRecord(
            actor=self._identity.actor,
            env_id=env_id,
            level=game.level(),
            total_reward=float(self._episode_reward[env_id]),
            length=int(self._episode_length[env_id]),
            end_reason=end_reason(info, terminated),
            max_x=self._max_x[env_id] if "max_x" in info else None,
            is_clear=is_clear(info, terminated),
        )
        self._builders[env_id].start_episode(game.reset())
        self._views.ended(env_id)
        if self._prior is not None:
            self._prior.start_episode(env_id)
        self._last_action[env_id] = -1
        self._episode_reward[env_id] = 0.0
        self._episode_length[env_id] = 0
        self._max_x[env_id] = 0
        return record

    def _header_factory(self, env_id: int) -> Callable[[int, int, int], SegmentHeader]:
        def header(version_min: int, version_max: int, prior_version: int) -> SegmentHeader:
            game = self._games[env_id]
            self._sequence += 1
            return SegmentHeader(
                run_id=self._identity.run_id,
                actor=self._identity.actor,
                incarnation=self._identity.incarnation,
                sequence=self._sequence,
                env_id=env_id,
                level=game.level(),
                seed=self._identity.seed,
                rom_hash=game.rom_hash,
                weight_version_min=version_min,
                weight_version_max=version_max,
                prior_version=prior_version,
                reward_version=game.reward_version,
            )

        return header
