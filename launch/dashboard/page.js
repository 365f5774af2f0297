"use strict";
// Draws what the feed sends. Text from the run goes into the page as text, never as markup.

const COLORS = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)"];
const OPINIONS = [["search", "search"], ["model", "world model"], ["prior", "LLM prior"]];
const TILES = [
  ["env steps", "global_step", 0], ["updates", "update", 0], ["episodes", "episodes", 0],
  ["return", "avg_return", 2], ["eval return", "eval_return_mean", 2], ["max x", "env_max_x_pos", 0],
  ["env steps/s", "env_steps_per_sec", 1], ["updates/s", "updates_per_sec", 1],
  ["replay fill", "replay_fill_rate", "%"], ["samples/insert", "ratio_actual", 1],
  ["prior hits", "prior_cache_hit_rate", "%"], ["fallbacks", "prior_fallback_rate", "%"],
  ["weights", "weight_version", 0], ["loss", "loss_total", 3],
];
const state = { status: {}, figures: {}, clockSkew: 0, connection: "connecting" };

const $ = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const now = () => Date.now() / 1000 + state.clockSkew;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function format(value, digits) {
  if (!isNumber(value)) return "-";
  if (digits === "%") return `${Math.round(100 * value)}%`;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function short(value) {
  if (!isNumber(value)) return "-";
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 0 : size >= 1 ? 2 : 3 });
}

function age(seconds) {
  if (!isNumber(seconds)) return "-";
  const s = Math.max(0, seconds);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

function showEmpty(section, isEmpty) {
  section.querySelector(".empty").classList.toggle("shown", isEmpty);
}

function drawStatus() {
  const { run, state: runState, newest } = state.status;
  $("run").textContent = run ?? "";
  document.title = run ? `${run} - WarpZone` : "WarpZone";
  const pill = $("state");
  const isOpen = state.connection === "open";
  const shown = isOpen ? runState ?? "" : state.connection;
  if (pill.textContent !== shown) pill.textContent = shown;
  pill.className = `pill ${isOpen ? runState ?? "" : state.connection === "connecting" ? "" : "lost"}`;
  $("newest").textContent = isNumber(newest) ? `newest record ${age(now() - newest)} ago` : "";
  for (const cell of document.querySelectorAll("[data-beat]")) {
    const beat = Number(cell.dataset.beat);
    const reference = runState === "running" ? now() : newest;
    cell.textContent = age(reference - beat);
  }
}

function drawFigures(figures) {
  state.figures = figures;
  const tiles = TILES.filter(([, name]) => isNumber(figures[name])).map(([label, name, digits]) => {
    const tile = make("div");
    tile.append(make("span", "", label), make("b", "", format(figures[name], digits)));
    return tile;
  });
  $("tiles").replaceChildren(...tiles);
  drawWaits(figures);
}

function drawWaits(figures) {
  const processes = new Map();
  for (const [name, value] of Object.entries(figures)) {
    const match = /^(time|wait)_percent\/(.+)\/([^/]+)$/.exec(name);
    if (!match || !isNumber(value)) continue;
    if (!processes.has(match[2])) processes.set(match[2], []);
    processes.get(match[2]).push({ waits: match[1] === "wait", what: match[3], percent: value });
  }
  const rows = [...processes].sort().map(([name, parts]) => {
    parts.sort((a, b) => a.waits - b.waits || b.percent - a.percent);
    const row = make("div", "wait");
    const stack = make("div", "stack");
    const legend = make("p", "legend");
    parts.forEach((part, index) => {
      const bit = make("i", part.waits ? "idle" : "");
      bit.style.width = `${Math.min(100, Math.max(0, part.percent))}%`;
      if (!part.waits) bit.style.background = COLORS[index % COLORS.length];
      stack.append(bit);
      if (part.percent < 0.5) return;
      const item = make("span", "", `${part.waits ? "waits for " : ""}${part.what.replaceAll("_", " ")} `);
      if (!part.waits) {
        const swatch = make("i");
        swatch.style.background = COLORS[index % COLORS.length];
        item.prepend(swatch);
      }
      item.append(make("b", "", `${Math.round(part.percent)}%`));
      legend.append(item);
    });
    row.append(make("div", "", name.replaceAll("_", " ")), stack, legend);
    return row;
  });
  $("waits").replaceChildren(...rows);
  showEmpty($("waits").parentElement, rows.length === 0);
}

function phaseOf(p) {
  if (p.is_stalled) return `${p.phase} (stalled)`;
  const isUsual = !p.state || p.state === "healthy";
  return isUsual ? p.phase ?? "-" : `${p.phase ?? "-"} (${p.state})`;
}

function drawFleet({ processes }) {
  const rows = processes.map((p) => {
    const row = make("tr");
    const heard = make("td", `num${p.is_stalled ? " stalled" : ""}`, "-");
    if (isNumber(p.beat_at)) heard.dataset.beat = p.beat_at;
    row.append(
      make("th", "", p.name), make("td", "", phaseOf(p)),
      heard, make("td", "num", isNumber(p.cpu_percent) ? `${Math.round(p.cpu_percent)}%` : "-"),
      make("td", "num", isNumber(p.rss_mb) ? `${format(p.rss_mb, 0)} MB` : "-"),
      make("td", "num", p.restarts),
    );
    return row;
  });
  $("fleet").hidden = rows.length === 0;
  $("fleet").tBodies[0].replaceChildren(...rows);
  showEmpty($("fleet").closest("section"), rows.length === 0);
}

function eventText(event) {
  const parts = [];
  for (const [name, value] of Object.entries(event)) {
    if (name === "timestamp" || name === "event" || value === null) continue;
    const text = isNumber(value) ? short(value) : typeof value === "object" ? JSON.stringify(value) : value;
    parts.push(`${name.replaceAll("_", " ")} ${text}`);
  }
  return parts.join(", ").slice(0, 400);
}

function drawEvents({ events }) {
  const rows = events.map((event) => {
    const row = make("li");
    const at = isNumber(event.timestamp) ? new Date(event.timestamp * 1000).toLocaleTimeString("en-GB") : "";
    row.append(make("time", "", at), make("b", "", String(event.event ?? "?").replaceAll("_", " ")), eventText(event));
    return row;
  });
  $("events").replaceChildren(...rows);
  showEmpty($("events").parentElement, rows.length === 0);
}

function drawLive(live) {
  const body = $("live").querySelector(".live-body");
  const opinions = OPINIONS.filter(([key]) => Array.isArray(live[key]));
  body.hidden = false;
  showEmpty($("live"), false);
  const isPicture = typeof live.frame_png === "string" && /^[A-Za-z0-9+/=]+$/.test(live.frame_png);
  $("frame").hidden = !isPicture;
  if (isPicture) $("frame").src = `data:image/png;base64,${live.frame_png}`;
  const at = isNumber(live.timestamp) ? new Date(live.timestamp * 1000).toLocaleTimeString("en-GB") : "";
  $("frame-caption").textContent = `value ${short(live.value)}${at ? `, at ${at}` : ""}`;
  $("opinion-legend").replaceChildren(...opinions.map(([key, label]) => {
    const item = make("span", "", label);
    const swatch = make("i");
    swatch.style.background = COLORS[OPINIONS.findIndex(([k]) => k === key)];
    item.prepend(swatch);
    return item;
  }));
  const actions = Array.isArray(live.actions) ? live.actions : [];
  const best = Array.isArray(live.search) ? live.search.indexOf(Math.max(...live.search)) : -1;
  $("bars").tBodies[0].replaceChildren(...actions.map((action, index) => {
    const row = make("tr", index === best ? "chosen" : "");
    const cell = make("td");
    for (const [key, label] of opinions) {
      const share = isNumber(live[key][index]) ? live[key][index] : 0;
      const bar = make("div", "bar");
      const fill = make("i");
      fill.style.width = `calc((100% - 3.2em) * ${Math.min(1, Math.max(0, share))})`;
      fill.style.background = COLORS[OPINIONS.findIndex(([k]) => k === key)];
      bar.title = `${label}: ${format(share, "%")}`;
      bar.append(fill, make("span", "", format(share, "%")));
      cell.append(bar);
    }
    const name = make("th", "", action);
    name.scope = "row";
    name.title = action;
    row.append(name, cell);
    return row;
  }));
  $("prompt").hidden = !live.prompt;
  $("prompt").textContent = live.prompt ?? "";
}

function drawCurves({ step, charts }) {
  $("charts").replaceChildren(...charts.map((chart) => drawChart(chart.title, step, chart.lines)));
  showEmpty($("charts").parentElement, charts.length === 0);
}

function drawChart(title, step, lines) {
  const W = 360, H = 170, left = 44, right = 6, top = 6, bottom = 20;
  const names = Object.keys(lines);
  const values = names.flatMap((name) => lines[name]).filter(isNumber);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const first = step[0], last = Math.max(step[step.length - 1], first + 1);
  const x = (s) => left + ((s - first) / (last - first)) * (W - left - right);
  const y = (v) => H - bottom - ((v - low) / (high - low)) * (H - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  picture.setAttribute("aria-label", `${title}: ${names.map((n) => `${n} ${short(lines[n].findLast(isNumber))}`).join(", ")}`);
  for (const share of [0, 0.5, 1]) {
    const value = low + share * (high - low);
    picture.append(svg("line", { class: "grid", x1: left, x2: W - right, y1: y(value), y2: y(value) }));
    const label = svg("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" });
    label.textContent = short(value);
    picture.append(label);
  }
  for (const [s, anchor] of [[first, "start"], [last, "end"]]) {
    const label = svg("text", { x: x(s), y: H - 5, "text-anchor": anchor });
    label.textContent = short(s);
    picture.append(label);
  }
  names.forEach((name, index) => {
    let path = "", pen = "M";
    lines[name].forEach((value, i) => {
      if (!isNumber(value)) { pen = "M"; return; }
      path += `${pen}${x(step[i]).toFixed(1)},${y(value).toFixed(1)}`;
      pen = "L";
    });
    const only = lines[name].filter(isNumber).length === 1;  // a single point has no line to draw
    picture.append(svg("path", {
      d: only ? `${path}h0.01` : path, fill: "none", stroke: COLORS[index % COLORS.length],
      "stroke-width": only ? 6 : 1.8, "stroke-linejoin": "round", "stroke-linecap": "round",
    }));
  });
  const box = make("div", "chart");
  const legend = make("p", "legend");
  box.append(make("h3", "", title), picture, legend);
  const fill = (at) => legend.replaceChildren(...names.map((name, index) => {
    const item = make("span", "", `${name.replaceAll("_", " ")} `);
    const swatch = make("i");
    swatch.style.background = COLORS[index % COLORS.length];
    item.prepend(swatch);
    item.append(make("b", "", short(at === null ? lines[name].findLast(isNumber) : lines[name][at])));
    return item;
  }));
  fill(null);
  const cursor = svg("line", { class: "cursor", y1: top, y2: H - bottom, x1: -9, x2: -9 });
  picture.append(cursor);
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const wanted = ((event.clientX - frame.left) / frame.width) * W;
    let at = 0;
    step.forEach((s, i) => { if (Math.abs(x(s) - wanted) < Math.abs(x(step[at]) - wanted)) at = i; });
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step[at]));
    fill(at);
  });
  picture.addEventListener("pointerleave", () => {
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, -9);
    fill(null);
  });
  return box;
}

const DRAW = {
  status: (data) => { state.status = data; }, figures: drawFigures, fleet: drawFleet,
  events: drawEvents, live: drawLive, curves: drawCurves,
};

function connect(retryMs) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/feed${location.search}`);
  socket.onmessage = (event) => {
    const { now: serverNow, messages } = JSON.parse(event.data);
    retryMs = 500;
    state.connection = "open";
    state.clockSkew = serverNow - Date.now() / 1000;
    for (const { kind, data } of messages) DRAW[kind]?.(data);
    drawStatus();
  };
  socket.onclose = () => {
    state.connection = "connection lost, trying again";
    drawStatus();
    setTimeout(() => connect(Math.min(10000, retryMs * 2)), retryMs);
  };
}

for (const id of ["live", "charts", "waits", "fleet", "events"]) showEmpty($(id).closest("section"), true);
if ("WebSocket" in window) {
  setInterval(drawStatus, 1000);
  connect(500);
} else {
  $("state").textContent = "this browser has no WebSocket: use a newer one";
}
