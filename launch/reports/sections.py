"""The parts of a report as HTML text; whatever a run's files say is escaped here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from html import escape

from actors.intervals import Estimate
from launch.control.reporter import QUIET_EVENTS
from launch.reports.charts import N_COLOURS, draw_chart, line_of, mean_line, short
from launch.reports.groups import Group, differing_settings
from launch.reports.run_record import Record, RunRecord, as_text, number
from launch.reports.stages import StageRow, evaluation_rows, own_rows, training_rows
from launch.reports.waits import waits_of

# Title, unit, and what is drawn: metric by label.
Curves = tuple[tuple[str, str, dict[str, str]], ...]
CURVES: Curves = (
    ("Return", "reward", {"training": "avg_return", "evaluation": "eval_return_mean"}),
    (
        "Furthest x",
        "pixels",
        {"training": "env_mean_x_pos", "best": "env_max_x_pos", "evaluation": "eval_max_x_mean"},
    ),
    ("Episode length", "env steps", {"mean": "episode_length_mean", "p90": "episode_length_p90"}),
    ("Speed", "per second", {"env steps": "env_steps_per_sec", "updates": "updates_per_sec"}),
    ("LLM prior", "share", {"fallbacks": "prior_fallback_rate", "cache": "prior_cache_hit_rate"}),
)
LEARNING_CURVES: Curves = (
    (
        "Losses",
        "nats",
        {n: f"loss_{n}" for n in ("total", "policy", "value", "reward", "latent")},
    ),
    ("Entropy of the policy", "nats", {"entropy": "entropy"}),
    ("Error of the value", "reward", {"mean distance": "value_error"}),
    ("Gradient", "norm before clipping", {"norm": "grad_norm"}),
    ("Learning rate", "per update", {"rate": "learning_rate"}),
    ("LLM tuning", "nats", {"loss": "language_loss", "KL to search": "language_kl"}),
)
REPLAY_CURVES: Curves = (
    ("Priorities", "reward", {n: f"replay_priority_{n}" for n in ("mean", "p50", "p90", "p99")}),
    ("Fill", "share", {"fill": "replay_fill_rate", "unique": "replay_avg_unique_ratio"}),
    ("Samples per insert", "ratio", {"actual": "ratio_actual", "target": "ratio_target"}),
    ("Age of samples", "updates", {n: f"replay_lag_{n}" for n in ("p50", "p90", "max")}),
)
# One metric each: between runs, lines are runs or groups of seeds.
COMPARED: tuple[tuple[str, str, str], ...] = (
    ("Return in training", "reward", "avg_return"),
    ("Return in evaluation", "reward", "eval_return_mean"),
    ("Furthest x in training, mean", "pixels", "env_mean_x_pos"),
    ("Furthest x in evaluation, mean", "pixels", "eval_max_x_mean"),
    ("Loss", "nats", "loss_total"),
    ("Env steps", "per second", "env_steps_per_sec"),
    ("Updates", "per second", "updates_per_sec"),
    ("Priorities, mean", "reward", "replay_priority_mean"),
)
# Of windows: the last ones of a run, without new env steps, would hide how fast it was.
RATES = ("env_steps_per_sec", "updates_per_sec")
ENV_STEPS, UPDATES = ("global_step", "env steps"), ("update", "updates")  # what curves run over
# Ordinary events; all others are incidents, those of later versions too.
ORDINARY = (
    *QUIET_EVENTS,
    "checkpoint",
    "checkpoint_uploaded",
    "language_trained",
    "schedule_phase",
    "replay_placed",
    "prior_engine_ready",
    "adapter_published",
)
MOST_INCIDENTS = 100
MOST_INCIDENT_CHARACTERS = 300
TILES = (
    ("env steps", "global_step"),
    ("updates", "update"),
    ("episodes", "episodes"),
    ("return", "avg_return"),
    ("return, evaluation", "eval_return_mean"),
    ("best x", "env_max_x_pos"),
    ("restarts", "restarts"),
)


def card(title: str, *parts: str, is_wide: bool = False, kind: str = "") -> str:
    """A section; "" if there is nothing in it.

    kind: tall for one beside which others stand, late for one that comes last in a narrow window
    """
    body = "".join(parts)
    kinds = " ".join(["card", *["wide"] * is_wide, *[kind] * bool(kind)])
    return f'<section class="{kinds}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int = 1) -> str:
    """Cells are HTML; the first `n_texts` columns hold texts, the others figures."""
    body = "".join(f"<tr>{_cells('td', row, n_texts)}</tr>" for row in rows)
    if not body:
        return ""
    head = _cells("th", [escape(name) for name in heads], n_texts)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(tag: str, cells: Sequence[str], n_texts: int) -> str:
    kinds = ("" if index < n_texts else ' class="num"' for index in range(len(cells)))
    return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))


def tiles(run: RunRecord) -> str:
    """The newest figures that people look at first."""
    found = figures(run)
    spent = number(run.summary.get("seconds"))
    found.append(("minutes, last part", None if spent is None else round(spent / 60.0, 1)))
    return '<div class="tiles">{}</div>'.format(
        "".join(
            f"<div><span>{escape(label)}</span><b>{short(value)}</b></div>"
            for label, value in found
            if value is not None
        )
    )


def figures(run: RunRecord) -> list[tuple[str, float | None]]:
    """TILES, and the mean speed of the whole run."""
    found = [(label, run.last(name)) for label, name in TILES]
    speed = run.rate("global_step")
    return [*found, ("env steps / s, mean", None if speed is None else round(speed, 1))]


def curves(run: RunRecord, wanted: Curves, axis: tuple[str, str] = ENV_STEPS) -> str:
    """axis: the counter that the curves run over, and its label."""
    charts = []
    for title, unit, names in wanted:
        lines = [line_of(label, _series(run, name, axis[0])) for label, name in names.items()]
        charts.append(draw_chart(title, unit, lines, axis[1]))
    return _charts(charts)


def _series(
    run: RunRecord, name: str, over: str = "global_step"
) -> list[tuple[float, float | None]]:
    return run.series(name, over, first=name in RATES)


def compared_curves(groups: Sequence[Group]) -> str:
    """A line a group: the run itself, or the mean of its runs with their spread."""
    charts = []
    for title, unit, name in COMPARED:
        lines = []
        for group in groups:
            each = [line_of(group.label, _series(run, name)) for run in group.runs]
            lines.append(each[0] if len(each) == 1 else mean_line(group.label, each))
        charts.append(draw_chart(title, unit, lines, ENV_STEPS[1]))
    return _charts(charts)


def _charts(charts: Iterable[str]) -> str:
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def waits(run: RunRecord) -> str:
    """A bar a process: solid is work, hatched is waiting."""
    bars = []
    for process, shares in waits_of(run).items():
        cells, legend = [], []
        for index, share in enumerate(shares):
            colour = f"k{index % N_COLOURS}" + (" idle" if share.is_wait else "")
            cells.append(f'<i class="{colour}" style="flex-grow:{share.percent:.2f}"></i>')
            what = f"waits for {share.name}" if share.is_wait else share.name
            legend.append(
                f'<li><i class="{colour}"></i>{escape(what)} <b>{share.percent:.1f} %</b></li>'
            )
        rest = max(0.0, 100.0 - sum(share.percent for share in shares))
        cells.append(f'<i style="flex-grow:{rest:.2f}"></i>')
        bars.append(
            f"<h3>{escape(process.replace('_', ' '))}</h3>"
            f'<div class="stack">{"".join(cells)}</div><ul class="legend">{"".join(legend)}</ul>'
        )
    note = '<p class="quiet">percent of wall time, mean over the run</p>'
    return note + "".join(bars) if bars else ""


def stages(run: RunRecord) -> str:
    """Training and evaluations, stage by stage."""
    trained, evaluated = training_rows(run), evaluation_rows(run.evaluation)
    own = next((e for e in reversed(run.events_of("evaluation")) if own_rows(e)), {})
    parts = []
    if trained:
        parts.append('<p class="quiet">The last 100 training episodes of each stage; they explore.')
        parts.append("</p>" + _stage_table(trained))
    if own:
        parts.append(f'<p class="quiet">The last evaluation of the run itself{_after(own)}.</p>')
        parts.append(_stage_table(own_rows(own)))
    if evaluated:
        at = _after(run.evaluation)
        parts.append(f'<p class="quiet">launch/evaluate.py on the checkpoint{at}.</p>')
        parts.append(_stage_table(evaluated))
    return "".join(parts)


def _after(evaluation: Record) -> str:
    steps = number(evaluation.get("env_steps"))
    return "" if steps is None else f", after {steps:,.0f} env steps"


def _stage_table(rows: Sequence[StageRow]) -> str:
    has_goal = any(row.cleared for row in rows)
    has_x = any(row.max_x for row in rows)
    heads = ["stage", "moves", "episodes"]
    heads += ["cleared"] * has_goal + ["furthest x, px"] * has_x + ["return", "length, steps"]
    cells = []
    for row in rows:
        line = [escape(row.stage or "-"), escape(row.what), str(row.n_episodes)]
        line += [_estimate(row.cleared, "{:.0%}")] * has_goal
        line += [_estimate(row.max_x, "{:,.0f}")] * has_x
        line += [_estimate(row.returns, "{:,.2f}"), _estimate(row.lengths, "{:,.0f}")]
        cells.append(line)
    return table(heads, cells, n_texts=2)


def _estimate(estimate: Estimate | None, form: str) -> str:
    """`value [low, high]`, the interval quiet."""
    if estimate is None:
        return "-"
    value = form.format(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    interval = f"[{form.format(estimate.low)}, {form.format(estimate.high)}]"
    return f'{value} <span class="quiet">{interval}</span>'


def incidents(run: RunRecord) -> str:
    """What went wrong or was changed, newest last; ordinary events are only counted."""
    counts = run.event_counts
    told = [event for event in run.events if _is_incident(event)]
    rows = [_incident(event) for event in told[-MOST_INCIDENTS:]]
    parts = [table(("time, UTC", "event", "what"), rows, n_texts=3)]
    if not rows:
        parts = ["<p>None.</p>"]
    elif len(told) > MOST_INCIDENTS:
        parts.append(f'<p class="quiet">the last {MOST_INCIDENTS} of {len(told)}</p>')
    if counts:
        every = ", ".join(f"{escape(name)} {count}" for name, count in sorted(counts.items()))
        parts.append(f'<p class="quiet">All events: {every}.</p>')
    return "".join(parts)


def _is_incident(event: Record) -> bool:
    return str(event.get("event")) not in ORDINARY or event.get("accepted") is False


def _incident(event: Record) -> list[str]:
    others = {k: v for k, v in event.items() if k not in ("timestamp", "event")}
    text = ", ".join(f"{name} {as_text(value)}" for name, value in others.items() if value != "")
    if len(text) > MOST_INCIDENT_CHARACTERS:
        text = f"{text[:MOST_INCIDENT_CHARACTERS]} ..."
    return [moment(event.get("timestamp")), escape(str(event.get("event"))), escape(text)]


def moment(timestamp: object) -> str:
    """A Unix time for people, UTC; "-" for what is none."""
    seconds = number(timestamp)
    if seconds is None or not 0 < seconds < 4e9:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def settings(run: RunRecord) -> str:
    """config.yaml as it is."""
    if not run.config_text:
        return ""
    return f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>"


def versions(run: RunRecord) -> str:
    rows = ((escape(name), escape(version)) for name, version in run.versions.items())
    return table(("library", "version"), rows, n_texts=2)


def differences(groups: Sequence[Group]) -> str:
    """The settings that the groups do not share."""
    rows = [
        [_breakable(name), *(_breakable(as_text(value)) for value in values)]
        for name, values in differing_settings(groups)
    ]
    return table(["setting", *(group.label for group in groups)], rows, n_texts=len(groups) + 1)


def _breakable(text: str) -> str:
    """A dotted name or a path that a narrow column may break between its parts."""
    return re.sub(r"([._/-])", r"\1<wbr>", escape(text))
