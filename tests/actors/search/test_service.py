"""A search service: whose contexts it holds, what it does when it lost one, how it batches."""

import numpy as np
import pytest

from actors.search import Planner, RootPrior, SearchClient, SearchConfig, SearchSeat
from actors.search.client import RETRY_AFTER_S, SearchUnavailable
from actors.search.service import PULL_EVERY_BATCHES, LocalSearchTransport, SearchService
from learner.weights import WeightStore, snapshot_weights

N_ENVS = 2  # of each client


@pytest.fixture
def model(make_model):
    return make_model().double()


class Serving:
    """Two clients of one service, each beside a planner of its own that must agree with it."""

    def __init__(self, model, **config):
        self.model = model
        self.config = SearchConfig(**{"n_simulations": 8, "debug": True, **config})
        self.store = WeightStore()
        self.restart()
        self.rng = np.random.default_rng(0)
        self.own = [self.planner(N_ENVS) for _ in range(2)]
        self.clients = [self.client(index) for index in range(2)]

    def planner(self, n_envs):
        return Planner(self.model, self.config, n_envs=n_envs, discount=0.97, seed=0)

    def restart(self):
        self.service = SearchService(
            self.planner(2 * N_ENVS), self.model, self.store, [N_ENVS, N_ENVS]
        )
        self.transport = LocalSearchTransport(self.service)

    def client(self, index, incarnation=0, transport=None):
        seat = SearchSeat(transport or self, index, incarnation)
        return SearchClient(
            seat, self.config, self.model.config, self.model.spec, n_envs=N_ENVS, sleep=lambda s: 0
        )

    # A transport to whichever service runs now.
    def submit(self, request):
        return self.transport.submit(request)

    def result(self, handle):
        return self.transport.result(handle)

    def step(self, index, action, draw_obs, envs=(0, 1)):
        """One step of a client and of its own planner, which must agree."""
        envs = np.array(envs)
        obs = draw_obs(self.rng, self.model.spec, len(envs))
        call = (envs, obs, np.full(len(envs), action))
        own, served = self.own[index].search(*call), self.clients[index].search(*call)
        np.testing.assert_array_equal(served.visit_counts, own.visit_counts)
        np.testing.assert_allclose(served.q_value, own.q_value, rtol=0, atol=1e-9)
        return served


def test_contexts_of_two_clients_stay_apart(model, draw_obs):
    serving = Serving(model)
    for action in (-1, 0, 2, 1, 1):
        for index in (0, 1):
            serving.step(index, action, draw_obs)
    assert serving.service.stats().metrics["search_served_restored"] == 0


def test_few_pages_for_many_environments_cost_rebuilds_and_no_exactness(model, draw_obs):
    """Pages for half of the environments: the least recently searched client's go."""
    serving = Serving(model, init_pages=2 * 3, recurrent_pages=2 * 8, max_roots=2)
    rebuilt = []
    for action in (-1, 0, 2, 1, 1, 0):
        rebuilt.append([serving.step(i, action, draw_obs).stats.n_rebuilt for i in (0, 1)])
    assert rebuilt == [[0, 0]] + [[2, 2]] * 5
    stats = serving.service.stats()
    assert stats.pools["init"].evictions == 2 * 11
    assert stats.metrics["search_served_restored"] == 0  # raw tokens of all are kept


def test_a_restarted_service_gets_its_contexts_back(model, draw_obs):
    serving = Serving(model)
    for action in (-1, 0, 2, 1, 1, 0, 2):
        serving.step(0, action, draw_obs)
    serving.restart()
    serving.step(1, -1, draw_obs)  # an episode that begins has nothing to bring
    assert serving.service.stats().metrics["search_served_restored"] == 0
    served = serving.step(0, 1, draw_obs)
    assert served.stats.n_rebuilt == 2
    assert serving.service.stats().metrics["search_served_restored"] == 2
    serving.step(0, 0, draw_obs)
    assert serving.service.stats().metrics["search_served_restored"] == 0


def test_a_new_incarnation_starts_from_nothing_and_shuts_the_old_one_out(model, draw_obs):
    serving = Serving(model)
    for action in (-1, 0, 2):
        serving.step(0, action, draw_obs)
        serving.step(1, action, draw_obs)
    old = serving.clients[0]
    serving.clients[0], serving.own[0] = serving.client(0, incarnation=1), serving.planner(N_ENVS)
    serving.step(0, -1, draw_obs, envs=(0,))
    steps = serving.service._planner.newest_steps(np.arange(4))
    assert steps.tolist() == [0, -1, 2, 2]
    obs = draw_obs(serving.rng, model.spec, 2)
    with pytest.raises(ValueError, match="client 0 was replaced: incarnation 1 has asked since"):
        old.search(np.arange(2), obs, np.zeros(2, np.int64))
    serving.step(1, 1, draw_obs)


def test_a_request_that_arrives_twice_is_appended_once(model, draw_obs):
    """Its sender gave up too early; the second one brings the context of before."""
    serving = Serving(model)
    serving.step(0, -1, draw_obs)
    sent, submit = [], serving.transport.submit
    serving.transport.submit = lambda request: sent.append(request) or submit(request)
    serving.step(0, 1, draw_obs)
    again = serving.service.run([sent[0]])[0]
    assert again.output is None and again.lost.tolist() == [0, 1]
    serving.step(0, 2, draw_obs)


def test_one_batch_serves_all_and_gives_each_its_own(model, draw_obs):
    """Rows of one batch get the noise, the temperature and the prior that they asked for."""
    serving, requests = Serving(model), []
    serving.transport.submit = lambda request: requests.append(request) or len(requests)
    llm = RootPrior(np.tile(np.array([0.0, 0.0, 1.0], np.float32), (2, 1)), np.ones(2, np.bool_))
    obs = [draw_obs(serving.rng, model.spec, 2) for _ in range(2)]
    start = np.full(2, -1)
    serving.clients[0].begin(np.arange(2), obs[0], start, mix=llm, add_noise=True)
    serving.clients[1].begin(np.arange(2), obs[1], start)
    noisy, plain = (reply.output for reply in serving.service.run(requests))
    metrics = serving.service.stats().metrics
    assert metrics["search_served_batches"] == 1
    assert metrics["search_served_batch_roots_mean"] == 4
    np.testing.assert_allclose(
        noisy.root_prior, 0.5 * noisy.model_policy + 0.5 * llm.probabilities, atol=1e-6
    )
    np.testing.assert_array_equal(plain.root_prior, plain.model_policy)
    own = serving.own[1].search(np.arange(2), obs[1], start)
    np.testing.assert_array_equal(plain.visit_counts, own.visit_counts)
    total = noisy.stats.simulations + plain.stats.simulations
    assert total == 4 * 8


def test_a_batch_holds_no_more_roots_than_allowed(model, draw_obs):
    serving, requests = Serving(model, max_roots=2), []
    serving.transport.submit = lambda request: requests.append(request) or len(requests)
    for client in serving.clients:
        client.begin(np.arange(2), draw_obs(serving.rng, model.spec, 2), np.full(2, -1))
    replies = serving.service.run(requests)
    assert all(reply.output is not None for reply in replies)
    assert serving.service.stats().metrics["search_served_batches"] == 2


def test_weights_change_between_batches_and_every_answer_names_its_version(
    model, draw_obs, scramble
):
    serving = Serving(model)
    versions = []
    for batch in range(2 * PULL_EVERY_BATCHES + 1):
        if batch == 3:
            trained = Serving(model).model
            scramble(trained, 9)
            serving.store.push(snapshot_weights(trained, 5))
        obs = draw_obs(serving.rng, model.spec, 2)
        action = np.full(2, -1 if batch == 0 else 0)
        versions.append(serving.clients[0].search(np.arange(2), obs, action).weight_version)
    # Nothing was published at first, so every batch looks; from then on every eighth does.
    assert versions == [-1] * 3 + [5] * (len(versions) - 3)
    scramble(trained, 10)
    serving.store.push(snapshot_weights(trained, 6))
    for _ in range(PULL_EVERY_BATCHES):
        obs = draw_obs(serving.rng, model.spec, 2)
        last = serving.clients[0].search(np.arange(2), obs, np.zeros(2, np.int64))
    assert last.weight_version == 6


def test_bad_requests_fail_alone(model, draw_obs):
    serving, requests = Serving(model), []
    serving.transport.submit = lambda request: requests.append(request) or len(requests)
    obs = draw_obs(serving.rng, model.spec, 2)
    serving.clients[0].begin(np.arange(2), obs, np.full(2, -1))
    serving.client(7).begin(np.arange(2), obs, np.full(2, -1))
    good, bad = serving.service.run(requests)
    assert good.output is not None
    assert isinstance(bad, ValueError) and "client must lie in [0, 2), got 7" in str(bad)


class Flaky:
    """A transport that is down for the first `n_failures` attempts."""

    def __init__(self, inner, n_failures):
        self.inner, self.left = inner, n_failures

    def submit(self, request):
        if self.left:
            self.left -= 1
            raise SearchUnavailable("actor died")
        return self.inner.submit(request)

    def result(self, handle):
        return self.inner.result(handle)


def test_a_client_asks_again_until_its_patience_ends(model, draw_obs):
    serving = Serving(model)
    client = serving.client(0, transport=Flaky(serving, 3))
    obs = draw_obs(serving.rng, model.spec, 2)
    output = client.search(np.arange(2), obs, np.full(2, -1))
    assert output.visit_counts.sum() == 16 and client.n_retries == 3
    slept = []
    hopeless = SearchClient(
        SearchSeat(Flaky(serving, 10**9), 1, 0),
        serving.config,
        model.config,
        model.spec,
        n_envs=N_ENVS,
        clock=lambda: sum(slept),
        sleep=slept.append,
    )
    with pytest.raises(SearchUnavailable, match=r"client 1 waited 9\d s .*: no connection"):
        hopeless.search(np.arange(2), obs, np.full(2, -1))
    assert set(slept) == {RETRY_AFTER_S}
