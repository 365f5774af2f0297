"""What may be changed in an env actor's play while a run goes on; it comes with every call."""

from __future__ import annotations

from dataclasses import dataclass

MAX_TEMPERATURE = 10.0


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """None leaves a setting as the run was started with."""

    temperature: float | None = None
    n_simulations: int | None = None  # at most search.n_simulations
    exploration: float = 1.0  # scales the scheduled temperature and the noise at roots

    def temperature_or(self, scheduled: float) -> float:
        """The one that is asked for, else the scheduled one, scaled."""
        if self.temperature is not None:
            return self.temperature
        return min(MAX_TEMPERATURE, scheduled * self.exploration)
