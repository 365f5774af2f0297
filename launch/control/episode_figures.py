"""What the newest training episodes came to."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from actors.collect_report import EpisodeRecord

RECENT_EPISODES = 100


class EpisodeFigures:
    """Owned by the controller's Progress; not saved, so that a resumed run begins to count anew."""

    def __init__(self) -> None:
        self._recent: deque[EpisodeRecord] = deque(maxlen=RECENT_EPISODES)
        self._clears: dict[str, deque[bool]] = {}  # by stage of Mario

    def add(self, episode: EpisodeRecord) -> None:
        self._recent.append(episode)
        if episode.max_x is not None:
            clears = self._clears.setdefault(episode.level, deque(maxlen=RECENT_EPISODES))
            clears.append(bool(episode.is_clear))

    def metrics(self, end_reasons: Counter[str]) -> dict[str, float]:
        """end_reasons: of all episodes of the whole run"""
        if not self._recent:
            return {}
        returns = np.array([e.total_reward for e in self._recent])
        lengths = np.array([e.length for e in self._recent], float)
        metrics = {
            "avg_return": float(returns.mean()),
            "recent_return_std": float(returns.std()),
            "recent_return_min": float(returns.min()),
            "recent_return_max": float(returns.max()),
            "episode_length_mean": float(lengths.mean()),
        }
        for percent in (50, 90, 99):
            metrics[f"recent_return_p{percent}"] = float(np.percentile(returns, percent))
            metrics[f"episode_length_p{percent}"] = float(np.percentile(lengths, percent))
        max_x = [e.max_x for e in self._recent if e.max_x is not None]
        if max_x:
            metrics["env_mean_x_pos"] = float(np.mean(max_x))
            metrics["env_max_x_pos"] = float(np.max(max_x))
        for level, clears in self._clears.items():
            metrics[f"stage_clear_rate/{level}"] = sum(clears) / len(clears)
        n_episodes = max(1, end_reasons.total())
        for reason, count in end_reasons.items():
            metrics[f"episode_end_{reason}_total"] = float(count)
            metrics[f"episode_end_{reason}_share"] = count / n_episodes
        return metrics
