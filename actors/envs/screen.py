"""From the emulator's picture to the observation in one compiled pass.

Maximum over the last two frames (sprites flicker), grey by the usual luma weights, area-averaging
resize. One thread; its cost is measured by benchmarks/env_speed.py.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from actors.envs.emulator import SCREEN_HEIGHT, SCREEN_WIDTH


def _coverage(n_source: int, n_target: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """For each target pixel its first source pixel [n_target] and the weights [n_target, K].

    Source pixels on an edge count by the covered part; each row of weights sums to 1.
    """
    scale = n_source / n_target
    first = np.floor(np.arange(n_target) * scale + 1e-9).astype(np.int32)
    n_taps = int(np.ceil(scale)) + 1
    edges = first[:, None] + np.arange(n_taps)
    low = np.maximum(edges, np.arange(n_target)[:, None] * scale)
    high = np.minimum(edges + 1, (np.arange(n_target)[:, None] + 1) * scale)
    weights = np.clip(high - low, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights.astype(np.float32)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _gray_row(a, b, row):  # type: ignore[no-untyped-def]
    """row[x] = max of the luma of two rows of 0x00RRGGBB pixels."""
    for x in range(a.size):
        p, q = a[x], b[x]
        luma_p = 77 * ((p >> 16) & 255) + 150 * ((p >> 8) & 255) + 29 * (p & 255)
        luma_q = 77 * ((q >> 16) & 255) + 150 * ((q >> 8) & 255) + 29 * (q & 255)
        row[x] = np.float32(max(luma_p, luma_q)) * np.float32(1.0 / 256.0)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _channel_row(a, b, shift, row):  # type: ignore[no-untyped-def]
    """row[x] = max of one colour channel of two rows of pixels."""
    for x in range(a.size):
        row[x] = np.float32(max((a[x] >> shift) & 255, (b[x] >> shift) & 255))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _shrink(previous, current, y0, wy, x0, wx, row, total, out):  # type: ignore[no-untyped-def]
    """Fill out [size, size, 1 or 3] uint8 from two [240, 256] uint32 pictures."""
    size, _, n_channels = out.shape
    height, width = current.shape
    for channel in range(n_channels):
        for i in range(size):
            total[:width] = np.float32(0.0)
            for k in range(wy.shape[1]):
                y = min(y0[i] + k, height - 1)
                if wy[i, k] > 0:
                    if n_channels == 1:
                        _gray_row(previous[y], current[y], row)
                    else:
                        _channel_row(previous[y], current[y], 16 - 8 * channel, row)
                    for x in range(width):
                        total[x] += wy[i, k] * row[x]
            for j in range(size):
                value = np.float32(0.5)
                for k in range(wx.shape[1]):
                    value += wx[j, k] * total[x0[j] + k]
                out[i, j, channel] = np.uint8(value)


class ScreenShrinker:
    """Turns two emulator pictures into one observation; owns its scratch memory, one per env."""

    def __init__(self, size: int, color: str) -> None:
        self.shape = (size, size, 3 if color == "rgb" else 1)
        self._y0, self._wy = _coverage(SCREEN_HEIGHT, size)
        self._x0, self._wx = _coverage(SCREEN_WIDTH, size)
        self._row = np.zeros(SCREEN_WIDTH, dtype=np.float32)
        # Padded: the last pixel's taps reach past the edge with weight 0.
        self._total = np.zeros(SCREEN_WIDTH + self._wx.shape[1], dtype=np.float32)

    def __call__(
        self, previous: NDArray[np.uint32], current: NDArray[np.uint32]
    ) -> NDArray[np.uint8]:
        """Observation [size, size, C] uint8, freshly allocated; the pictures are [240, 256]."""
        out = np.empty(self.shape, dtype=np.uint8)
        _shrink(
            previous, current, self._y0, self._wy, self._x0, self._wx, self._row, self._total, out
        )
        return out


def to_rgb(screen: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The full picture [240, 256, 3] uint8 for videos."""
    channels = screen.view(np.uint8).reshape(SCREEN_HEIGHT, SCREEN_WIDTH, 4)
    return np.ascontiguousarray(channels[:, :, 2::-1])
