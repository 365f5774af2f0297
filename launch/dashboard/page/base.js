"use strict";
// What all parts of the page share. Text from the run goes into the page as text, never as markup.

const COLORS = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)"];
const MINUS = "\u2212", DASH = "\u2013", ARROW = "\u2192", DOT = "\u00b7";
const state = { status: {}, figures: {}, clockSkew: 0, connection: "connecting", farewell: "" };

const $ = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isList = Array.isArray;
const now = () => Date.now() / 1000 + state.clockSkew;
const hasEnded = () => ["finished", "stopped", "failed"].includes(state.status.state);

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function format(value, digits) {
  if (!isNumber(value)) return DASH;
  if (digits === "%") return `${Math.round(100 * value)}%`;
  const shown = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return shown.replace("-", MINUS);
}

function short(value) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  let shown;
  if (size >= 1e4) shown = value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  else if (size > 0 && size < 1e-3) shown = value.toExponential(1);
  else shown = value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 0 : size >= 1 ? 2 : 3 });
  return shown.replace("-", MINUS);
}

function bytes(value) {
  if (!isNumber(value)) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value, unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${size.toLocaleString("en", { maximumFractionDigits: size < 10 && unit ? 1 : 0 })} ${units[unit]}`;
}

function age(seconds) {
  if (!isNumber(seconds)) return DASH;
  const s = Math.max(0, seconds);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

const clockTime = (at) => (isNumber(at) ? new Date(at * 1000).toLocaleTimeString("en-GB") : "");

// An element whose text is an age that goes on; `drawAges` moves all of them.
function agoing(node, at, suffix = "") {
  if (!isNumber(at)) return node;
  node.dataset.at = at;
  node.dataset.suffix = suffix;
  node.textContent = age(now() - at) + suffix;
  return node;
}

function drawAges() {
  const { state: runState, newest } = state.status;
  // Of a run that says nothing any more, ages are those when it last did.
  const reference = ["running", "starting"].includes(runState) || !isNumber(newest) ? now() : newest;
  for (const node of document.querySelectorAll("[data-at]")) {
    const of = node.dataset.of === "now" ? now() : reference;
    node.textContent = age(of - Number(node.dataset.at)) + node.dataset.suffix;
  }
}

function swatch(color, className = "") {
  const box = make("i", className);
  if (color) box.style.background = color;
  return box;
}

function legendItem(label, value, color, className) {
  const item = make("span", "", value === undefined ? label : `${label} `);
  item.prepend(swatch(color, className));
  if (value !== undefined) item.append(make("b", "", value));
  return item;
}

function showEmpty(section, isEmpty) {
  section.querySelector(".empty").classList.toggle("shown", isEmpty);
}
