"""The picture of one move: the game at the left, what was thought of it at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.episodes import Moment

HEIGHT = 480  # pixels of the whole picture
PANEL_WIDTH = 400
TEXT_WIDTH = 560  # of the left side in a game that can't be drawn
MOST_ACTIONS = 9  # rows of bars; the most searched ones of more
LABEL_CHARACTERS = 40
MARGIN = 14

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]  # RGB

PAPER: Colour = (24, 25, 28)
INK: Colour = (236, 236, 234)
QUIET: Colour = (150, 154, 160)
# Alike on the live page: who thinks so, and the colour of that bar.
OPINIONS: tuple[tuple[str, str, Colour], ...] = (
    ("search", "search_policy", (106, 165, 245)),
    ("policy", "model_policy", (245, 147, 91)),
    ("prior", "llm_prior", (69, 196, 168)),
)


def draw_moment(moment: Moment) -> Picture:
    """[480, W, 3] RGB; W depends on the game alone, so that all frames of an episode are alike."""
    left = _text_side(moment) if moment.picture is None else _game_side(moment.picture)
    frame = np.concatenate([left, _panel(moment)], axis=1)
    odd = frame.shape[1] % 2  # video codecs take even sizes
    return np.pad(frame, ((0, 0), (0, odd), (0, 0)))


def shown_actions(moment: Moment) -> list[int]:
    """Legal ones, in the game's order; where these are many, the most searched of them."""
    legal = moment.legal
    allowed = [a for a in range(len(moment.options)) if legal is None or legal[a]]
    if len(allowed) <= MOST_ACTIONS:
        return allowed
    shares = next((s for _, s in opinions(moment)), None)
    weight = np.zeros(len(moment.options)) if shares is None else shares
    best = sorted(allowed, key=lambda a: (a != moment.action, -weight[a]))[:MOST_ACTIONS]
    return sorted(best)


def opinions(moment: Moment) -> list[tuple[str, NDArray[np.floating]]]:
    """Name and shares [A] of those who were asked."""
    named = ((name, getattr(moment, field)) for name, field, _ in OPINIONS)
    return [(name, shares) for name, shares in named if shares is not None]


def _game_side(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    size = (round(width * HEIGHT / height), HEIGHT)
    grows = height <= HEIGHT  # pixels of a console stay sharp
    return cv2.resize(
        picture, size, interpolation=cv2.INTER_NEAREST if grows else cv2.INTER_AREA
    ).reshape(HEIGHT, -1, 3)


def _text_side(moment: Moment) -> Picture:
    side = _empty(TEXT_WIDTH)
    lines = textwrap.wrap(moment.prompt or "this game has no picture", width=62)
    for index, line in enumerate(lines[-22:]):  # a prompt has the newest at its end
        _write(side, line, (MARGIN, 30 + 20 * index), INK, 0.45)
    return side


def _panel(moment: Moment) -> Picture:
    panel = _empty(PANEL_WIDTH)
    value = "-" if moment.value is None else f"{moment.value:.2f}"
    stage = f"stage {moment.level[:24]}, " if moment.level else ""
    _write(panel, f"{stage}step {moment.length}", (MARGIN, 26), INK, 0.5)
    _write(panel, f"return {moment.total_reward:.1f}, value {value}", (MARGIN, 48), INK, 0.5)
    left = MARGIN
    for name, field, colour in OPINIONS:
        is_asked = getattr(moment, field) is not None
        _write(panel, name, (left, 72), colour if is_asked else QUIET, 0.45)
        left += 80
    for row, action in enumerate(shown_actions(moment)):
        _draw_action(panel, moment, action, 88 + 43 * row)
    return panel


def _draw_action(panel: Picture, moment: Moment, action: int, top: int) -> None:
    is_played = action == moment.action
    label = textwrap.shorten(moment.options[action], LABEL_CHARACTERS, placeholder="..")
    mark = "> " if is_played else ""
    _write(panel, mark + label, (MARGIN, top + 12), INK if is_played else QUIET, 0.42)
    widest = PANEL_WIDTH - 2 * MARGIN - 44
    for index, (_, field, colour) in enumerate(OPINIONS):
        shares: Sequence[float] | None = getattr(moment, field)
        if shares is None:
            continue
        y = top + 17 + 8 * index
        length = max(1, round(widest * float(shares[action])))
        cv2.rectangle(panel, (MARGIN, y), (MARGIN + length, y + 6), colour, cv2.FILLED)
        _write(panel, f"{shares[action]:.2f}", (MARGIN + length + 5, y + 7), QUIET, 0.32)


def _empty(width: int) -> Picture:
    return np.full((HEIGHT, width, 3), PAPER, np.uint8)


def _write(image: Picture, text: str, place: tuple[int, int], colour: Colour, size: float) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
