// Figures, waits, fleet, replay, checkpoints and events.

const TILES = [
  ["env steps", "global_step", 0], ["updates", "update", 0], ["episodes", "episodes", 0],
  ["return", "avg_return", 2], ["eval return", "eval_return_mean", 2], ["max x", "env_max_x_pos", 0, " px"],
  ["playing", "env_steps_per_sec", 1, " steps/s"], ["learning", "updates_per_sec", 1, " updates/s"],
  ["searching", "search_simulations_per_sec", 0, " sims/s"],
  ["replay fill", "replay_fill_rate", "%"], ["prior hits", "prior_cache_hit_rate", "%"],
  ["prior fallbacks", "prior_fallback_rate", "%"], ["search service busy", "search_served_busy_share", "%"], ["weight version", "weight_version", 0],
  ["loss", "loss_total", 3, " nats"],
];
const PRIORITIES = [["median", "replay_priority_p50"], ["90%", "replay_priority_p90"], ["99%", "replay_priority_p99"]];
const SAMPLE_STAGES = [["draw", "replay_draw_ms"], ["gather", "replay_gather_ms"], ["targets", "replay_targets_ms"]];

function drawFigures(figures) {
  state.figures = figures;
  const tiles = TILES.filter(([, name]) => isNumber(figures[name])).map(([label, name, digits, unit]) => {
    const tile = make("div"), value = make("b", "", format(figures[name], digits));
    if (unit) value.append(make("small", "", unit));
    tile.append(make("span", "", label), value);
    return tile;
  });
  $("tiles").replaceChildren(...tiles);
  drawReplay(figures);
}

function drawWaits({ rows, over }) {
  const stacks = rows.map(({ name, parts }) => {
    parts.sort((a, b) => a.is_wait - b.is_wait || b.share - a.share);
    return stackRow(name, parts.map(({ what, is_wait: isWait, share }, index) => ({
      label: what, share, text: format(share, "%"), color: isWait ? null : COLORS[index % COLORS.length],
    })));
  });
  $("waits").replaceChildren(...stacks);
  $("waits-over").textContent = `share of wall time ${over}`;
  showEmpty($("waits").parentElement, stacks.length === 0);
}

// A bar of parts [{label, share of the whole, text, color or null for waiting}] over its legend.
function stackRow(title, parts) {
  const row = make("div", "wait"), stack = make("div", "stack"), legend = make("p", "legend");
  for (const { label, share, text, color } of parts) {
    const bit = swatch(color, color ? "" : "idle");
    bit.style.width = `${Math.min(100, Math.max(0, 100 * share))}%`;
    stack.append(bit);
    if (share >= 0.005) legend.append(legendItem(label, text, color, color ? "" : "idle"));
  }
  row.append(make("div", "", title), stack, legend);
  return row;
}

function drawReplay(figures) {
  const rows = [];
  const add = (label, value, note) => {
    const cell = make("dd", "", value);
    if (note) cell.append(make("span", "quiet", ` ${DOT} ${note}`));
    rows.push(make("dt", "", label), cell);
  };
  const f = (name) => figures[name];
  if (isNumber(f("replay_positions"))) add("positions", format(f("replay_positions"), 0), `${format(f("replay_fill_rate"), "%")} full, ${bytes(f("replay_bytes"))}`);
  if (isNumber(f("replay_push_total"))) add("inserted so far", format(f("replay_push_total"), 0), `${format(f("replay_sample_total"), 0)} batches sampled`);
  if (isNumber(f("ratio_actual"))) add("samples per insert", format(f("ratio_actual"), 2), isNumber(f("ratio_target")) ? `wanted ${format(f("ratio_target"), 2)}` : "");
  if (isNumber(f("replay_avg_unique_ratio"))) add("different in a batch", format(f("replay_avg_unique_ratio"), "%"));
  if (isNumber(f("replay_lag_p50"))) add("age of samples", `${format(f("replay_lag_p50"), 0)} updates`, `90% up to ${format(f("replay_lag_p90"), 0)}`);
  if (isNumber(f("replay_beta"))) add("importance exponent", format(f("replay_beta"), 2));
  $("replay-facts").replaceChildren(...rows);
  const priorities = PRIORITIES.filter(([, name]) => isNumber(f(name)));
  const most = Math.max(1e-9, ...priorities.map(([, name]) => f(name)));
  $("priorities").replaceChildren(...priorities.map(([label, name], index) => {
    const row = make("tr"), cell = make("td"), bar = make("div", "bar"), fill = swatch(COLORS[index]);
    fill.style.width = `calc((100% - 4.5em) * ${Math.max(0, f(name) / most)})`;
    bar.append(fill, make("span", "", short(f(name))));
    cell.append(bar);
    row.append(make("th", "", label), cell);
    return row;
  }));
  $("priority-title").hidden = priorities.length === 0;
  const stages = SAMPLE_STAGES.filter(([, name]) => isNumber(f(name)));
  const total = stages.reduce((sum, [, name]) => sum + f(name), 0);
  $("sampling").replaceChildren(...(total > 0 ? [stackRow(`making a batch takes ${format(total, 2)} ms`, stages.map(
    ([label, name], index) => ({ label, share: f(name) / total, text: `${format(f(name), 2)} ms`, color: COLORS[index] }),
  ))] : []));
  showEmpty($("replay-facts").parentElement, rows.length === 0);
}

function phaseOf(p) {
  if (p.is_stalled) return `${p.phase ?? DASH} (stalled)`;
  const isUsual = !p.state || p.state === "healthy";
  return isUsual ? p.phase ?? DASH : `${p.phase ?? DASH} (${p.state})`;
}

function drawFleet({ processes }) {
  const rows = processes.map((p) => {
    const row = make("tr"), restarts = make("td", "num", p.restarts);
    if (isNumber(p.failed_at)) {
      const last = agoing(make("span", "quiet"), p.failed_at, " ago)");
      restarts.append(make("span", "quiet", " (last "), last);
    }
    row.append(
      make("th", "", p.name), make("td", "", phaseOf(p)),
      agoing(make("td", `num${p.is_stalled ? " stalled" : ""}`, DASH), p.beat_at, " ago"),
      make("td", "num", isNumber(p.cpu_percent) ? `${Math.round(p.cpu_percent)}%` : DASH),
      make("td", "num", isNumber(p.rss_mb) ? bytes(p.rss_mb * 2 ** 20) : DASH), restarts,
    );
    return row;
  });
  fillTable("fleet", rows);
}

function drawCheckpoints({ checkpoints }) {
  fillTable("checkpoints", checkpoints.map((c) => {
    const row = make("tr"), name = make("th", "", format(c.env_steps, 0));
    name.title = c.name;
    const made = agoing(make("td", "num", DASH), c.made_at, " ago");
    made.dataset.of = "now";
    row.append(
      name, make("td", "num", format(c.updates, 0)), made,
      make("td", "num", isNumber(c.seconds) ? `${format(c.seconds, 1)} s` : DASH),
      make("td", "", c.reason ?? DASH), make("td", "mark", c.mark ?? ""),
    );
    return row;
  }));
}

function fillTable(id, rows) {
  $(id).hidden = rows.length === 0;
  $(id).tBodies[0].replaceChildren(...rows);
  showEmpty($(id).closest("section"), rows.length === 0);
}

function eventText(event) {
  const parts = [];
  for (const [name, value] of Object.entries(event)) {
    if (name === "timestamp" || name === "event" || value === null || value === "") continue;
    const plain = typeof value === "object" ? JSON.stringify(value) : value;
    // Of a path, its name: the run's own folder is known.
    const text = isNumber(value) ? short(value) : name === "path" ? String(value).split("/").pop() : plain;
    parts.push(`${name.replaceAll("_", " ")} ${text}`);
  }
  return parts.join(", ").slice(0, 400);
}

function drawEvents({ events }) {
  $("events").replaceChildren(...events.map((event) => {
    const row = make("li");
    row.append(
      make("time", "", clockTime(event.timestamp)),
      make("b", "", String(event.event ?? "?").replaceAll("_", " ")), eventText(event),
    );
    return row;
  }));
  showEmpty($("events").parentElement, events.length === 0);
}
