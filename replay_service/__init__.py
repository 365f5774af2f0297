"""Prioritized replay of episode segments: bounded ring storage, sum tree, n-step targets."""

from replay_service.batch_source import (
    BatchSource,
    LocalBatchSource,
    LocalJointBatchSource,
    LocalReanalysisSource,
)
from replay_service.config import ReplayConfig, check_capacity
from replay_service.joint import JointTextSource
from replay_service.placement import choose_device
from replay_service.reanalysis import ReanalysisRequest, ReanalysisSource, TargetPatch
from replay_service.replay import Replay
from replay_service.segment import GameSpec, Segment, SegmentHeader
from replay_service.statistics import AddReport, merge_stats, stat_line
from replay_service.targets import Batch, BatchHandles, Handles, TargetConfig, TextBatch

__all__ = [
    "AddReport",
    "Batch",
    "BatchHandles",
    "BatchSource",
    "GameSpec",
    "Handles",
    "JointTextSource",
    "LocalBatchSource",
    "LocalJointBatchSource",
    "LocalReanalysisSource",
    "ReanalysisRequest",
    "ReanalysisSource",
    "Replay",
    "ReplayConfig",
    "Segment",
    "SegmentHeader",
    "TargetConfig",
    "TargetPatch",
    "TextBatch",
    "check_capacity",
    "choose_device",
    "merge_stats",
    "stat_line",
]
