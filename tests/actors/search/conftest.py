"""Small real world models, with heads that say something."""

import numpy as np
import pytest
import torch

from actors.search import SearchClient, SearchSeat
from actors.search.service import LocalSearchTransport, SearchService
from learner.weights import WeightStore
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scramble_(model, seed):
    """New random parameters in place; heads are zero at first, which would hide every error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((0.2 * noise + (parameter.dim() == 1)).to(parameter.dtype))


@pytest.fixture(scope="session")
def scramble():
    return scramble_


@pytest.fixture(scope="session")
def make_model():
    def make(window_steps=3, n_layers=2, n_actions=3, dtype=torch.float32, seed=0, image=False):
        config = WorldModelConfig(
            embed_dim=16,
            n_layers=n_layers,
            n_heads=2,
            window_steps=window_steps,
            encoder_channels=4,
            mlp_hidden=16,
            support_size=11,
            support_max=2.0,
        )
        shape = ((1, 16, 16), "uint8") if image else ((3,), "float32")
        model = WorldModel(config, GameSpec(*shape, n_actions=n_actions)).to(dtype).eval()
        scramble_(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def draw_obs():
    def draw(rng, spec, n_rows):
        shape = (n_rows, *spec.stacked_shape)
        if spec.is_image:
            return rng.integers(256, size=shape, dtype=np.uint8)
        return rng.normal(size=shape).astype(np.float32)

    return draw


class Served:
    """A planner behind a service and a client; everything but `search` is the planner's own."""

    def __init__(self, planner):
        model, n_envs = planner._model, planner.n_envs
        self.service = SearchService(planner, model, WeightStore(), [n_envs])
        seat = SearchSeat(LocalSearchTransport(self.service), client=0, incarnation=0)
        self._planner = planner
        self.client = SearchClient(seat, planner.config, model.config, model.spec, n_envs=n_envs)
        self.search = self.client.search

    def __getattr__(self, name):
        return getattr(self._planner, name)


@pytest.fixture(scope="session", params=["local", "served"])
def through(request):
    """Puts a planner where the mode of search puts it."""
    return Served if request.param == "served" else lambda planner: planner
