"""The compiled pass equals a plain numpy one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.envs.screen import ScreenShrinker, to_rgb


def _area_matrix(n_source: int, n_target: int) -> NDArray[np.float64]:
    """[n_target, n_source] share of each source pixel in each target pixel."""
    edges = np.arange(n_target + 1) * n_source / n_target
    low = np.maximum(edges[:-1, None], np.arange(n_source))
    high = np.minimum(edges[1:, None], np.arange(n_source) + 1)
    return np.clip(high - low, 0, None) * n_target / n_source


@pytest.mark.parametrize("size", [64, 84, 96])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_observation_equals_the_plain_computation(size: int, color: str) -> None:
    rng = np.random.default_rng(size)
    pictures = rng.integers(0, 2**24, size=(2, 240, 256), dtype=np.uint32)
    channels = np.stack([pictures >> 16 & 255, pictures >> 8 & 255, pictures & 255], axis=-1)
    if color == "gray":
        channels = (channels @ np.array([77, 150, 29]) / 256)[..., None]
    newest = channels.max(axis=0)
    rows, columns = _area_matrix(240, size), _area_matrix(256, size)
    expected = np.stack([rows @ newest[..., c] @ columns.T for c in range(newest.shape[2])], -1)
    observation = ScreenShrinker(size, color)(pictures[0], pictures[1])
    assert observation.dtype == np.uint8 and observation.shape == expected.shape
    assert np.abs(observation - expected).max() <= 0.51  # rounding, float32


def test_extreme_pictures_stay_in_range() -> None:
    white = np.full((240, 256), 0xFFFFFF, dtype=np.uint32)
    shrink = ScreenShrinker(84, "rgb")
    assert (shrink(white, white) == 255).all()
    assert (shrink(white * 0, white * 0) == 0).all()


def test_rgb_reads_the_bytes_in_order() -> None:
    screen = np.full((240, 256), 0x00112233, dtype=np.uint32)
    assert to_rgb(screen)[5, 7].tolist() == [0x11, 0x22, 0x33]
