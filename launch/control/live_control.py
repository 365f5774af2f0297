"""What a live page asks of a run: settings changed on the way, a checkpoint, and what to show."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

from actors.live_view import ViewWish
from actors.play_settings import PlaySettings
from launch.config import Config
from launch.control.adaptive import scales_of
from launch.control.live_file import LIVE_VIEW_PERIOD_S
from launch.control.live_settings import LiveSettings, changed, in_effect, knobs
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.request_box import CHECKPOINT, SETTING, Answer, Request, RequestBox
from launch.control.runtime import Child
from launch.setting_types import SettingError, shown

LOOK_PERIOD_S = 0.5
TELL_PERIOD_S = 5.0  # between two looks at whether schedules have moved a setting
UNSEEN_PERIOD_S = 30.0  # between pictures that nobody asked for; a page opened later begins so
MOST_ENVS = 8  # shown at once
MOST_ACTORS = 4  # that show them


class LiveControl:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        reporter: Reporter,
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self.settings = LiveSettings()
        self._told: list[dict[str, object]] = []
        self._told_at = -inf
        self._wants_checkpoint = False
        self._config = config
        self._reporter = reporter
        self._progress = progress
        self._clock = clock
        self._box = RequestBox(run_dir, clock)
        self._looked_at = -inf
        self._viewer: tuple[int, int] | None = None
        self._shown_at = -inf  # by anybody
        self._actor_shown_at: dict[int, float] = {}

    def begin(self) -> None:
        self._box.begin()
        self._tell()

    def look(self) -> None:
        """Does what was asked for; a look costs two calls of the file system, twice a second."""
        if self._clock() - self._looked_at < LOOK_PERIOD_S:
            return
        self._looked_at = self._clock()
        self._viewer = self._box.viewer()
        for request in self._box.take():
            self._box.answer(request, self._answer(request))
        if self._clock() - self._told_at >= TELL_PERIOD_S:  # schedules move what is in force
            self._tell()

    def take_checkpoint_wish(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wish, self._wants_checkpoint = self._wants_checkpoint, False
        return wish

    @property
    def is_paused(self) -> bool:
        return self.settings.paused

    @property
    def play(self) -> PlaySettings | None:
        return self.settings.play

    def wish_for(self, child: Child) -> ViewWish | None:
        """What this env actor is to show with its next call.

        While nobody looks, anybody shows one environment now and then.
        """
        now, actor = self._clock(), child.index
        if self._viewer is None:
            if now - self._shown_at < UNSEEN_PERIOD_S:
                return None
            self._shown_at = now
            return ViewWish(1, closely=0)
        shown_actor, shown_env = self._viewer
        n_actors = min(MOST_ACTORS, self._config.acting.num_actors)
        is_among = actor < n_actors or actor == shown_actor
        shown_at = self._actor_shown_at.get(actor, -inf)
        if not is_among or now - shown_at < LIVE_VIEW_PERIOD_S:
            return None
        self._shown_at = self._actor_shown_at[actor] = now
        return ViewWish(-(-MOST_ENVS // n_actors), shown_env if actor == shown_actor else None)

    def _answer(self, request: Request) -> Answer:
        content = request.content
        if isinstance(content, dict) and content.get("ask") == SETTING:
            return self._change(content.get("setting"), content.get("value"))
        if isinstance(content, dict) and content.get("ask") == CHECKPOINT:
            self._wants_checkpoint = True
            return Answer(
                True, "asked for; it is begun when nothing it holds is moving, and is an event then"
            )
        return self._refuse(
            f"a request must ask for {SETTING} or {CHECKPOINT}, got {shown(content)}"
        )

    def _change(self, name: object, value: object) -> Answer:
        old = self.settings
        try:
            self.settings, knob = changed(old, name, value, self._config)
        except SettingError as error:
            return self._refuse(str(error))
        before, after = (self._in_effect(s, knob.name) for s in (old, self.settings))
        self._reporter.event(
            "setting_changed",
            setting=knob.name,
            before=before,
            after=after,
            follows=knob.own if getattr(self.settings, knob.name) is None else "",
            env_steps=self._progress.env_steps,
        )
        self._tell()
        return Answer(True, f"{knob.name} {_word(before)} \N{RIGHTWARDS ARROW} {_word(after)}")

    def _refuse(self, cause: str) -> Answer:
        self._reporter.event("setting_refused", cause=cause)
        return Answer(False, cause)

    def _tell(self) -> None:
        """Pages show what can be changed, within which bounds, and what it is now."""
        self._told_at = self._clock()
        rows: list[dict[str, object]] = [
            {
                "name": knob.name,
                "kind": "switch" if knob.hint is bool else "number",
                "is_whole": knob.hint is int,
                "low": knob.low,
                "high": knob.high,
                "value": getattr(self.settings, knob.name),
                "now": self._in_effect(self.settings, knob.name),
                "own": knob.own,
                "meaning": knob.meaning,
            }
            for knob in knobs(self._config)
        ]
        if rows != self._told:
            self._told = rows
            self._reporter.live_settings(rows)

    def _in_effect(self, settings: LiveSettings, name: str) -> object:
        config, progress = self._config, self._progress
        exploration = scales_of(progress.adaptive, config.adaptive).exploration
        return in_effect(settings, name, config, progress.env_steps, exploration)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
