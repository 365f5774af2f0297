"""Metrics on disk, the live table, and the monitor that watches every process."""

from launch.monitoring.live_table import LiveTable, print_summary
from launch.monitoring.metrics_writer import MetricsWriter
from launch.monitoring.monitor import Heartbeat, Monitor, MonitorConfig

__all__ = [
    "Heartbeat",
    "LiveTable",
    "MetricsWriter",
    "Monitor",
    "MonitorConfig",
    "print_summary",
]
