"""The live web page of a run, read from its directory."""

from launch.dashboard.run_view import NotARunError, RunView, check_run
from launch.dashboard.server import make_app

__all__ = ["NotARunError", "RunView", "check_run", "make_app"]
