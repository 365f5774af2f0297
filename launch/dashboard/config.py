"""Settings of the live page that a run shows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 8321


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    enabled: bool = False  # show the live page while the run goes on
    host: str = "127.0.0.1"  # address to listen on; beyond this machine a token is needed
    port: int = DEFAULT_PORT  # 0 takes any free one
    token_file: Path | None = None  # with the secret that browsers must show

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"dashboard.port must lie in [0, 65535], got {self.port}")
