"""Vector observations are standardised by what training has shown."""

import torch

from learner.world_model import WorldModel, WorldModelConfig
from replay_service import GameSpec

SPEC = GameSpec((3,), "float32", 2)


def test_statistics_are_those_of_all_batches_at_first():
    model = WorldModel(WorldModelConfig(), SPEC)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 4, 3, generator=generator) * 5 + 2 for _ in range(6)]
    for batch in batches:
        model.adapt_inputs(batch)
    rows = torch.cat(batches).flatten(0, 1)
    torch.testing.assert_close(model.encoder.mean, rows.mean(0))
    torch.testing.assert_close(model.encoder.mean_square, rows.square().mean(0))


def test_scale_and_offset_of_the_inputs_do_not_matter_after_adaptation():
    rows = torch.randn(256, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    plain = WorldModel(WorldModelConfig(), SPEC)
    torch.manual_seed(0)
    scaled = WorldModel(WorldModelConfig(), SPEC)
    factor, offset = torch.tensor([0.01, 1.0, 50.0]), torch.tensor([3.0, 0.0, -9.0])
    plain.adapt_inputs(rows)
    scaled.adapt_inputs(rows * factor + offset)
    torch.testing.assert_close(
        plain.encode(rows), scaled.encode(rows * factor + offset), rtol=1e-2, atol=1e-3
    )


def test_an_entry_that_never_changes_stays_finite():
    model = WorldModel(WorldModelConfig(), SPEC)
    model.adapt_inputs(torch.ones(8, 3))
    assert torch.isfinite(model.encode(torch.full((2, 3), 1.5))).all()
