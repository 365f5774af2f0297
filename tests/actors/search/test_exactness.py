"""Searching over cached pages gives what the model gives over whole histories, uncached."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search import Planner, SearchConfig

N_ENVS, N_ACTIONS, N_SIMULATIONS = 4, 3, 6
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


class Episodes:
    """The whole history of every environment, and the uncached model over it."""

    def __init__(self, model):
        self.model = model
        self.obs = [[] for _ in range(N_ENVS)]
        self.actions = [[] for _ in range(N_ENVS)]

    def append(self, env, obs, action):
        if action < 0:
            self.obs[env], self.actions[env] = [], []
        else:
            self.actions[env].append(action)
        self.obs[env].append(obs)

    @torch.no_grad()
    def nodes(self, env, paths):
        """Rewards, values, policies, latents after imagining each path from the newest step."""
        model, n = self.model, len(paths)
        latents = model.encode(torch.from_numpy(np.stack(self.obs[env])))[None]
        t, longest = len(self.obs[env]) - 1, max(map(len, paths))
        # Padding comes after what is read; one more action makes the last observation appear.
        actions = [[*self.actions[env], *p, *[0] * (longest - len(p) + 1)] for p in paths]
        output = model.imagine(latents.expand(n, -1, -1), torch.tensor(actions))
        rows, end = torch.arange(n), t + torch.tensor([len(p) for p in paths])
        return (
            model.support.decode(output.reward_logits[rows, end - 1]).numpy(),
            model.support.decode(output.value_logits[rows, end]).numpy(),
            output.policy_logits[rows, end].double().softmax(-1).numpy(),
            output.next_latent[rows, end - 1].numpy(),
        )

    @torch.no_grad()
    def root(self, env):
        """Value and policy logits of the newest observation, from one teacher-forced pass."""
        latents = self.model.encode(torch.from_numpy(np.stack(self.obs[env])))[None]
        actions = torch.tensor([self.actions[env]], dtype=torch.int64)
        output = self.model(latents, actions)
        value = self.model.support.decode(output.value_logits[0, -1])
        return float(value), output.policy_logits[0, -1].double().numpy()


def check_roots(planner, episodes, envs, roots, tolerance):
    for row, env in enumerate(envs):
        value, logits = episodes.root(env)
        np.testing.assert_allclose(roots.logits[row], logits, atol=tolerance, rtol=0)
        np.testing.assert_allclose(roots.value[row], value, atol=tolerance, rtol=0)


class ImaginedLatents:
    """Keeps the latent that the search imagined for every page it wrote last."""

    def __init__(self, planner):
        self.of_page = {}
        model = planner._model
        imagine, make_context = model.action_token, model.token_context
        imagined = []

        def action_token(*arguments):
            answer = imagine(*arguments)
            imagined[:] = [answer[1].numpy().copy()]
            return answer

        def token_context(*arguments):
            context = make_context(*arguments)
            read, write, own = context.read, context.write, []

            def read_pages(ids, step):
                own[:] = ids[:, -1].tolist()
                read(ids, step)

            def write_pages():
                write()
                latents = imagined[0] if imagined else ()
                self.of_page.update(zip(own, latents, strict=False))

            context.read, context.write = read_pages, write_pages
            return context

        model.action_token, model.token_context = action_token, token_context


def check_nodes(planner, episodes, envs, tolerance, latents=None):
    """Every node of the latest trees; a leaf's value sum is the model's value itself."""
    tree = planner._tree
    for env in envs:
        n_nodes = tree.trunks["n_nodes"][env]
        paths = [[] for _ in range(n_nodes - 1)]
        for node, path in enumerate(paths, start=1):
            while node:
                path.insert(0, int(tree.nodes["action"][env, node]))
                node = tree.nodes["parent"][env, node]
        reward, value, policy, latent = episodes.nodes(env, paths)
        limits = dict(atol=tolerance, rtol=0)
        np.testing.assert_allclose(tree.edges["prior"][env, 1:n_nodes], policy, **limits)
        np.testing.assert_allclose(tree.nodes["reward"][env, 1:n_nodes], reward, **limits)
        if latents is not None:
            pages = tree.nodes["page"][env, 1:n_nodes].tolist()
            np.testing.assert_allclose([latents.of_page[p] for p in pages], latent, **limits)
        leaf = tree.nodes["visits"][env, 1:n_nodes] == 1
        np.testing.assert_allclose(
            tree.nodes["value_sum"][env, 1:n_nodes][leaf], value[leaf], **limits
        )


def play(planner, model, rng, n_calls, scramble, draw_obs, tolerance):
    """Random calls: subsets in any order, resets, new weights, arbitrary actions."""
    episodes, version, latents = Episodes(model), 0, ImaginedLatents(planner)
    roots = []
    advance = planner._contexts.advance
    planner._contexts.advance = lambda *a: roots.append(advance(*a)) or roots[-1]
    started = np.zeros(N_ENVS, np.bool_)
    for call in range(n_calls):
        n_rows = rng.integers(1, planner.config.max_roots or N_ENVS, endpoint=True)
        envs = rng.permutation(N_ENVS)[:n_rows]
        actions = np.where(
            started[envs] & (rng.random(n_rows) > 0.15), rng.integers(N_ACTIONS, size=n_rows), -1
        )
        started[envs] = True
        obs = draw_obs(rng, model.spec, n_rows)
        for row, env in enumerate(envs):
            episodes.append(env, obs[row], int(actions[row]))
        if rng.random() < 0.15:
            version += 1
            scramble(model, int(rng.integers(2**31)))
            planner.weights_changed(version)
        legal = rng.random((n_rows, N_ACTIONS)) < 0.7
        legal[:, rng.integers(N_ACTIONS)] = True
        planner.search(envs, obs, actions, legal, add_noise=bool(rng.integers(2)))
        check_roots(planner, episodes, envs, roots[-1], tolerance)
        if call >= n_calls - 3 and not planner.config.reuse_tree:
            check_nodes(planner, episodes, envs, tolerance, latents)
    return planner.cache_stats()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    window=st.integers(1, 4),
    n_layers=st.integers(1, 3),
    n_rings=st.integers(2, N_ENVS),
    n_trees=st.integers(2, N_ENVS),
    evictions=st.tuples(*[st.sampled_from(["fifo", "lru"])] * 2),
    n_calls=st.integers(1, 14),
    reuse_tree=st.booleans(),
    n_leaves=st.integers(1, N_SIMULATIONS),
)
def test_cached_equals_uncached(
    make_model,
    scramble,
    draw_obs,
    through,
    dtype,
    seed,
    window,
    n_layers,
    n_rings,
    n_trees,
    evictions,
    n_calls,
    reuse_tree,
    n_leaves,
):
    """With reused trees the roots stay exact; their kept nodes saw an imagined observation."""
    model = make_model(window, n_layers, N_ACTIONS, dtype, seed)
    config = SearchConfig(
        n_simulations=N_SIMULATIONS,
        max_roots=2,
        init_pages=n_rings * window,
        recurrent_pages=n_trees * N_SIMULATIONS,
        init_eviction=evictions[0],
        recurrent_eviction=evictions[1],
        reuse_tree=reuse_tree,
        leaves_per_call=n_leaves,
        debug=True,
    )
    planner = through(Planner(model, config, n_envs=N_ENVS, discount=0.97, seed=seed))
    rng = np.random.default_rng(seed)
    play(planner, model, rng, n_calls, scramble, draw_obs, TOLERANCE[dtype])


def test_images_and_whole_batches_too(make_model, scramble, draw_obs, through):
    model = make_model(dtype=torch.float64, image=True)
    config = SearchConfig(n_simulations=N_SIMULATIONS, debug=True)
    planner = through(Planner(model, config, n_envs=N_ENVS, discount=0.97, seed=1))
    rng = np.random.default_rng(1)
    stats = play(planner, model, rng, 12, scramble, draw_obs, 1e-9)
    assert stats["recurrent"].hits > 0 and stats["init"].hits > 0


def test_evicted_contexts_are_rebuilt_and_counted(make_model, scramble, draw_obs, through):
    """Four environments take turns on two rings: every return to one is a miss and a rebuild."""
    model = make_model(window_steps=3, n_layers=2, dtype=torch.float64)
    config = SearchConfig(n_simulations=N_SIMULATIONS, max_roots=2, init_pages=6, debug=True)
    planner = through(Planner(model, config, n_envs=N_ENVS, discount=0.97, seed=1))
    rng, episodes = np.random.default_rng(2), Episodes(model)
    n_rebuilt = []
    for call in range(12):
        envs = np.array([[0, 1], [2, 3]][call % 2])
        obs = draw_obs(rng, model.spec, 2)
        actions = np.full(2, -1 if call < 2 else 1)
        for row, env in enumerate(envs):
            episodes.append(env, obs[row], int(actions[row]))
        output = planner.search(envs, obs, actions)
        n_rebuilt.append(output.stats.n_rebuilt)
        check_nodes(planner, episodes, envs, 1e-9)
    assert n_rebuilt == [0, 0] + [2] * 10
    assert planner.cache_stats()["init"].evictions == 2 * 11


def test_a_search_that_died_half_way_leaves_no_wrong_pages(
    make_model, draw_obs, through, monkeypatch
):
    """Its real step counts as taken; the half-grown tree is not read by the next search."""
    model = make_model(dtype=torch.float64)
    # Even noise: all root actions are tried, in another order in every search.
    config = SearchConfig(n_simulations=N_SIMULATIONS, dirichlet_alpha=10.0, dirichlet_fraction=1.0)
    planner = through(Planner(model, config, n_envs=N_ENVS, discount=0.97, seed=1))
    rng, episodes, envs = np.random.default_rng(3), Episodes(model), np.arange(N_ENVS)
    real, calls = model.action_token, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2 * N_SIMULATIONS - 2:
            raise RuntimeError("out of memory")
        return real(*arguments)

    monkeypatch.setattr(model, "action_token", dies)
    for action in (-1, 0, 1, 2, 0):
        obs = draw_obs(rng, model.spec, N_ENVS)
        for env in envs:
            episodes.append(env, obs[env], action)
        try:
            planner.search(envs, obs, np.full(N_ENVS, action), add_noise=True)
        except RuntimeError:
            assert action == 0
            continue
        check_nodes(planner, episodes, envs, 1e-9)


def test_roots_stay_exact_while_trees_are_reused(make_model, draw_obs, through):
    """The action played next may lead to a kept node, whose own action token is not exact."""
    model = make_model(dtype=torch.float64)
    config = SearchConfig(n_simulations=30, reuse_tree=True, debug=True)
    planner = through(Planner(model, config, n_envs=1, discount=0.97, seed=1))
    rng, episodes, envs = np.random.default_rng(3), Episodes(model), np.arange(1)
    roots, advance = [], planner._contexts.advance
    planner._contexts.advance = lambda *a: roots.append(advance(*a)) or roots[-1]
    action, n_simulations = -1, []
    for _ in range(12):
        obs = draw_obs(rng, model.spec, 1)
        episodes.append(0, obs[0], action)
        output = planner.search(envs, obs, np.array([action]))
        check_roots(planner, episodes, envs, roots[-1], 1e-9)
        n_simulations.append(output.stats.simulations)
        action = int(output.visit_counts[0].argmax())
    assert n_simulations[0] == 30 > max(n_simulations[1:])


def test_stored_keys_tell_nodes_apart_whose_latents_are_equal(make_model, draw_obs, through):
    """Fresh heads are zero: every imagined latent is the same, yet no node shares a cache."""
    model = make_model(dtype=torch.float64)
    for head in (model.latent_head, model.policy_head, model.value_head, model.reward_head):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    config = SearchConfig(n_simulations=30, debug=True)
    planner = through(Planner(model, config, n_envs=2, discount=0.97, seed=1))
    latents, episodes, envs = ImaginedLatents(planner), Episodes(model), np.arange(2)
    obs = draw_obs(np.random.default_rng(0), model.spec, 2)
    for env in envs:
        episodes.append(env, obs[env], -1)
    planner.search(envs, obs, np.full(2, -1))
    check_nodes(planner, episodes, envs, 1e-9)
    nodes, pages = planner._tree.nodes["page"][envs, 1:31].ravel(), planner._cache.pages
    assert len(np.unique(nodes)) == 60
    imagined = np.stack([latents.of_page[page] for page in nodes.tolist()])
    assert np.ptp(imagined, axis=0).max() < 1e-12
    for env in envs:
        kv = pages.kv[torch.from_numpy(nodes.reshape(2, 30)[env])].flatten(1)
        distance = torch.cdist(kv, kv) + torch.eye(30, dtype=kv.dtype)
        assert distance.min() > 1e-6
