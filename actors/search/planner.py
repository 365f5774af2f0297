"""Batched tree search over a world model: one model call for the next leaves of all roots.

A planner belongs to one acting process and is used from one thread. It keeps each environment's
context across searches, so consecutive calls for an environment must follow its episode.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from actors.search import gumbel, model_step
from actors.search.arguments import check_arguments
from actors.search.choice import GREEDY, sample_actions, share_out
from actors.search.config import SearchConfig
from actors.search.contexts import Contexts, RootStep, make_cache
from actors.search.history import NO_ACTION, HistoryTail, Ints
from actors.search.planting import NO_REUSE, Roots, plant
from actors.search.result import SearchOutput, SearchStats
from actors.search.root_prior import (
    InjectionConfig,
    Probabilities,
    RootPrior,
    add_dirichlet_noise,
    mix_root_prior,
    softmax_legal,
)
from actors.search.selection import Rule, make_rule, select
from actors.search.tree import (
    ROOT,
    make_tree,
    root_visits,
    tree_depth,
)
from actors.search.tree_picture import TreePicture, draw_tree
from cache.pool import EMPTY, PoolStats
from learner.world_model import WorldModel

MAX_MODEL_STEPS = 32  # row counts whose buffers (on CUDA: and graphs) are kept at once


class Planner:
    """Searches for up to `n_envs` environments, any subset per call."""

    def __init__(
        self,
        model: WorldModel,
        config: SearchConfig,
        *,
        n_envs: int,
        discount: float,
        seed: int,
        device: torch.device | str = "cpu",
        injection: InjectionConfig | None = None,
    ) -> None:
        if n_envs < 1 or not 0.0 < discount <= 1.0:
            raise ValueError(
                f"n_envs must be positive and discount in (0, 1], got {n_envs} and {discount}"
            )
        self.config = config
        self.injection = injection or InjectionConfig()
        self.n_envs = n_envs
        self._model = model
        self._device = torch.device(device)
        self._rng = np.random.default_rng(seed)
        self._rule = make_rule(config, n_envs, model.spec.n_actions, discount)
        self._cache = make_cache(model, config, n_envs, self._device)
        self._contexts = Contexts(model, self._cache, n_envs, self._device)
        # Where the next real action token is cached already: for each root action, the place (from
        # 1) among the tree's pages. Not for reused nodes: they saw an imagined observation.
        self._action_places: Ints = np.full((n_envs, model.spec.n_actions), EMPTY, np.int64)
        self._is_grown = np.zeros(n_envs, np.bool_)  # the latest search came to its end
        self._tree = make_tree(
            n_envs, config.n_simulations, model.spec.n_actions, self._contexts.n_window
        )
        self._steps: dict[int, model_step.ModelStep] = {}
        self._schedules: dict[int, Ints] = {}  # of Gumbel's searches with fewer simulations

    def search(
        self,
        env_ids: NDArray[np.integer],
        obs: NDArray[np.generic],
        last_action: NDArray[np.integer],
        legal: NDArray[np.bool_] | None = None,
        mix: RootPrior | None = None,
        add_noise: NDArray[np.floating] | float = False,
        env_steps: Ints | int = 0,
        temperature: NDArray[np.floating] | float = GREEDY,
        n_simulations: int | None = None,
    ) -> SearchOutput:
        """Append one real step per environment and search from it.

        env_ids [B] distinct; obs [B, *stacked_shape]; last_action [B], -1 at an episode's start,
        which resets that environment's context; legal [B, A]; and for all rows alike or each [B]:
        env_steps of the run, for decays;
        add_noise, Dirichlet noise in PUCT's root prior, Gumbel noise in Gumbel's: how much of what
        is configured, True is all of it, above 1 more;
        temperature, PUCT plays by visit shares ** (1 / temperature), 0 plays the most visited
        action; Gumbel's noise is its only chance.
        n_simulations: fewer than the settings' for this search, None for all of them.
        Raises ValueError on arguments of the wrong shape or range, naming the row.
        """
        start = perf_counter()
        envs, actions, legal = check_arguments(
            self._model.spec, self.n_envs, self.config.max_roots, env_ids, obs, last_action, legal
        )
        n_simulations = self._allowed(n_simulations)
        seconds_model = self._contexts.seconds_model
        with torch.inference_mode():
            places = self._action_places[envs, np.maximum(actions, 0)]
            played = np.where(actions == NO_ACTION, EMPTY, places)
            root = self._contexts.advance(envs, obs, actions, played)
            self._action_places[envs] = EMPTY
            model_policy = softmax_legal(root.logits, legal)
            prior = self._root_prior(model_policy, legal, mix, env_steps)
            seconds_tree = self._plant(envs, root, prior, legal, actions, add_noise, n_simulations)
            n_reused = int((self._tree.nodes["visits"][envs, ROOT] - 1).sum())
            n_kept = self._tree.trunks["n_nodes"][envs]
            self._is_grown[envs] = False
            seconds_tree += self._simulate(envs, root, n_simulations)
        failed = self._tree.trunks["failed"][envs] == 1
        self._is_grown[envs] = ~failed
        self._remember_actions(envs, n_kept)
        if failed.any():
            self._cache.clear("env", envs[failed])  # rebuilt from raw tokens on next use
        stats = SearchStats(
            simulations=len(envs) * n_simulations - n_reused,
            seconds_model=self._contexts.seconds_model - seconds_model,
            seconds_tree=seconds_tree,
            seconds_total=perf_counter() - start,
            n_rebuilt=root.n_rebuilt,
            n_failed=int(failed.sum()),
        )
        temperatures = np.broadcast_to(temperature, len(envs))
        return self._output(envs, root, model_policy, prior, temperatures, n_simulations, stats)

    def weights_changed(self, version: int) -> None:
        """Tell that the model's parameters were replaced: every cached page is now void."""
        self._cache.invalidate(version)

    @property
    def weight_version(self) -> int:
        """Of the model's parameters, as told by `weights_changed`; -1 before the first time."""
        return self._cache.version

    def newest_steps(self, envs: Ints) -> Ints:
        """Step of each environment's newest observation [B], NO_STEP where there is none."""
        return self._contexts.newest_steps(envs)

    def forget(self, envs: Ints) -> None:
        """Drop the contexts of `envs`; each must start an episode next, or be restored."""
        self._contexts.forget(envs)

    def restore(self, envs: Ints, tail: HistoryTail) -> None:
        """Take over contexts that another planner held; their windows are rebuilt on next use."""
        self._contexts.restore(envs, tail)

    def draw_tree(self, env: int) -> TreePicture:
        """The most visited part of the newest search for `env`."""
        return draw_tree(self._tree, env)

    def cache_stats(self, reset: bool = False) -> dict[str, PoolStats]:
        """Statistics of the pools init, recurrent and scratch since the last reset."""
        return self._cache.stats(reset)

    def _allowed(self, n_simulations: int | None) -> int:
        """Trees and pages are as large as the settings say, so no search can have more."""
        most, least = self.config.n_simulations, self.config.leaves_per_call
        if n_simulations is None:
            return most
        if not least <= n_simulations <= most:
            raise ValueError(
                f"n_simulations must lie in [{least}, {most}], between search.leaves_per_call and "
                f"search.n_simulations, got {n_simulations}"
            )
        return n_simulations

    def _rule_for(self, n_simulations: int) -> Rule:
        """Gumbel divides the simulations of a search among its actions by a table for their number;
        PUCT's rule is the same for all.
        """
        rule = self._rule
        if n_simulations == self.config.n_simulations or not rule.is_gumbel:
            return rule
        if n_simulations not in self._schedules:
            n_most = len(rule.schedule) - 1
            self._schedules[n_simulations] = gumbel.halving_schedule(n_most, n_simulations)
        return rule._replace(schedule=self._schedules[n_simulations])

    def _model_step(self, n_roots: int) -> model_step.ModelStep:
        """Buffers of equal size are shared: searches of one planner never overlap."""
        n_leaves = self.config.leaves_per_call
        n_padded = model_step.padded_rows(n_roots * n_leaves, self._device)
        if n_padded not in self._steps:
            if len(self._steps) == MAX_MODEL_STEPS:
                del self._steps[next(iter(self._steps))]
            self._steps[n_padded] = model_step.ModelStep(
                self._model, self._cache.pages, n_roots, n_leaves, self._device
            )
        return self._steps[n_padded]

    def _root_prior(
        self,
        model_policy: Probabilities,
        legal: NDArray[np.bool_],
        mix: RootPrior | None,
        env_steps: Ints | int,
    ) -> Probabilities:
        if mix is None:
            return model_policy
        return mix_root_prior(
            model_policy, mix.probabilities, mix.available, legal, self.injection, env_steps
        )

    def _plant(
        self,
        envs: Ints,
        root: RootStep,
        prior: Probabilities,
        legal: NDArray[np.bool_],
        last_action: Ints,
        add_noise: NDArray[np.floating] | float,
        n_simulations: int,
    ) -> float:
        """Start the trees; returns the seconds it took."""
        start = perf_counter()
        config, share = self.config, np.broadcast_to(np.asarray(add_noise, float), len(envs))
        noisy = share > 0.0
        first_action = np.zeros(len(prior), np.int32)
        if config.variant == "gumbel":
            rule = self._rule
            noise = self._rng.gumbel(scale=config.gumbel_scale, size=prior.shape)
            rule.noise[envs] = np.where(noisy[:, None], noise * share[:, None], 0.0)
            rule.n_considered[envs] = np.minimum(legal.sum(axis=1), len(rule.schedule) - 1)
        elif noisy.any():
            fraction = np.minimum(1.0, config.dirichlet_fraction * share)
            mixed = add_dirichlet_noise(prior, legal, config.dirichlet_alpha, fraction, self._rng)
            prior = np.where(noisy[:, None], mixed, prior)
            first_action[noisy] = self._rng.integers(prior.shape[1], size=len(prior))[noisy]
        keeps_tree = np.zeros(len(envs), np.bool_)
        if config.reuse_tree:
            has_tree = self._cache.has_trees(envs, root.steps - 1)
            keeps_tree = has_tree & self._is_grown[envs] & (last_action != NO_ACTION)
            n_kept = self._tree.edges["visits"][envs, ROOT, np.maximum(last_action, 0)]
            keeps_tree &= n_kept <= n_simulations  # an earlier search may have had more
        roots = Roots(
            prior=prior,
            legal=legal,
            value=root.value,
            step=root.steps,
            window=root.window,
            first_page=self._cache.plant_trees(envs, root.steps),
            first_action=first_action,
            reuse=np.where(keeps_tree, last_action, NO_REUSE),
        )
        plant(self._tree, envs, roots)
        self._tree.trunks["failed"][envs] |= ~np.isfinite(root.logits).all(axis=1)
        return perf_counter() - start

    def _simulate(self, envs: Ints, root: RootStep, n_simulations: int) -> float:
        """Run simulations until every tree has all; returns the seconds spent in tree kernels."""
        tree, rule = self._tree, self._rule_for(n_simulations)
        step = self._model_step(len(envs))
        leaves = step.leaves(len(envs))
        seconds_model, start = step.seconds_model, perf_counter()
        n_chosen = select(tree, envs, rule, n_simulations, leaves)
        seconds_tree = perf_counter() - start
        while n_chosen:
            outputs = step.run()
            start = perf_counter()
            n_chosen = select(tree, envs, rule, n_simulations, leaves, outputs)
            seconds_tree += perf_counter() - start
        self._contexts.seconds_model += step.seconds_model - seconds_model
        return seconds_tree

    def _remember_actions(self, envs: Ints, n_kept: NDArray[np.int32]) -> None:
        child = self._tree.edges["child"][envs, ROOT]
        page = np.take_along_axis(self._tree.nodes["page"][envs], np.maximum(child, ROOT), axis=1)
        place = page - self._cache.tree_pages(envs)[:, None] + 1
        self._action_places[envs] = np.where(child >= n_kept[:, None], place, EMPTY)

    def _output(
        self,
        envs: Ints,
        root: RootStep,
        model_policy: Probabilities,
        prior: Probabilities,
        temperature: NDArray[np.floating],
        n_simulations: int,
        stats: SearchStats,
    ) -> SearchOutput:
        tree = self._tree
        visits = root_visits(tree, envs)
        policy = visits / n_simulations
        if self.config.variant == "gumbel":
            rule = self._rule
            policy, action = gumbel.conclude(tree, envs, rule.constants, rule.noise)
        value = tree.nodes["value_sum"][envs, ROOT] / tree.nodes["visits"][envs, ROOT]
        q_value = tree.edges["q"][envs, ROOT]
        failed = np.flatnonzero(tree.trunks["failed"][envs])
        if len(failed):
            policy[failed] = prior[failed]
            visits[failed] = share_out(prior[failed], n_simulations)
            q_value[failed] = 0.0
            value[failed] = np.nan_to_num(root.value[failed], nan=0.0, posinf=0.0, neginf=0.0)
        if self.config.variant == "puct":
            action = sample_actions(policy, temperature, self._rng)
        elif len(failed):
            action[failed] = policy[failed].argmax(axis=1)
        return SearchOutput(
            weight_version=self.weight_version,
            action=action,
            visit_counts=visits,
            policy=policy.astype(np.float32),
            root_value=value.astype(np.float32),
            q_value=q_value.astype(np.float32),
            model_policy=model_policy.astype(np.float32),
            root_prior=prior.astype(np.float32),
            depth_max=tree_depth(tree, envs),
            stats=stats,
        )
