"""Prioritized replay of episode segments: bounded ring storage, sum tree, n-step targets."""

from replay_service.config import ReplayConfig, check_capacity
from replay_service.replay import AddReport, BatchSource, LocalBatchSource, Replay
from replay_service.segment import GameSpec, Segment, SegmentHeader
from replay_service.targets import Batch, Handles, TargetConfig, TextBatch

__all__ = [
    "AddReport",
    "Batch",
    "BatchSource",
    "GameSpec",
    "Handles",
    "LocalBatchSource",
    "Replay",
    "ReplayConfig",
    "Segment",
    "SegmentHeader",
    "TargetConfig",
    "TextBatch",
    "check_capacity",
]
