"""Frames of an episode as an mp4, by way of a temporary file: memory would not hold a long one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

VIDEO_FPS = 15  # one frame per agent step; Mario's frame skip of 4 makes this about real time


class VideoFile:
    """Used from one thread; `finish` ends it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warpzone-video-")
        self._path = Path(self._folder.name) / "episode.mp4"
        self._writer = imageio.get_writer(
            self._path, fps=VIDEO_FPS, codec="libx264", macro_block_size=2
        )

    def add(self, frame: NDArray[np.uint8]) -> None:
        """frame: [H, W, 3] RGB, all of one size."""
        self._writer.append_data(frame)

    def finish(self) -> bytes | None:
        """The file's bytes, None if no frame was added."""
        self._writer.close()
        data = self._path.read_bytes() if self._path.exists() else None
        self._folder.cleanup()
        return data
