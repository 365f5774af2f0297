// What can be changed while the run goes on. The run itself checks every value and answers.

const TITLES = { temperature: "Temperature", simulations: "Simulations per search", learning_rate_scale: "Learning-rate scale", paused: "Pause" };
const knobs = new Map();  // by name: {setting, input, now, reply}
const waiting = new Map();  // by number of the request: where its answer is shown
let nAsked = 0;

function drawSettings({ settings }) {
  const known = isList(settings) ? settings.filter((s) => s && typeof s.name === "string") : [];
  if (known.length !== knobs.size || known.some((s) => !knobs.has(s.name))) {
    knobs.clear();
    $("settings").replaceChildren(...known.filter((s) => s.kind !== "switch").map(makeKnob));
    for (const s of known.filter((one) => one.kind === "switch")) knobs.set(s.name, { setting: s });
  }
  for (const setting of known) updateKnob(setting);
  showEmpty($("settings").closest("section"), known.length === 0);
  drawControls();
}

function makeKnob(setting) {
  const form = make("form", "knob"), id = `knob-${setting.name}`;
  form.noValidate = true;  // the run says what is wrong, in the words of its other messages
  const label = make("label", "", TITLES[setting.name] ?? setting.name);
  label.htmlFor = id;
  const input = make("input"), apply = make("button", "", "Set"), now = make("span", "now"), reply = make("output", "reply");
  Object.assign(input, { id, type: "number", min: setting.low, max: setting.high, step: setting.is_whole ? 1 : "any", inputMode: "decimal" });
  input.addEventListener("input", () => { input.dataset.dirty = "1"; });
  const line = make("div", "knob-line");
  line.append(input, apply);
  if (setting.own) {
    const reset = make("button", "plain", `Back to ${setting.own}`);
    reset.type = "button";
    reset.addEventListener("click", () => { input.dataset.dirty = ""; askToSet(setting.name, null); });
    line.append(reset);
  }
  form.append(label, now, line, make("p", "quiet", setting.meaning), reply);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    input.dataset.dirty = "";
    const value = input.value.trim() === "" ? "" : Number(input.value);
    askToSet(setting.name, value);
  });
  knobs.set(setting.name, { setting, input, now, reply });
  return form;
}

function updateKnob(setting) {
  const knob = knobs.get(setting.name);
  knob.setting = setting;
  if (!knob.input) return;
  const isOwn = setting.value === null;
  const bounds = `${short(setting.low)} to ${short(setting.high)}`;
  knob.now.textContent = `now ${short(setting.now)}${isOwn ? ` (${setting.own})` : ""} ${DOT} ${bounds}`;
  if (!knob.input.dataset.dirty) knob.input.value = isNumber(setting.now) ? Number(setting.now.toPrecision(6)) : "";
}

function drawControls() {
  const isOpen = state.connection === "open" && !hasEnded() && knobs.size > 0;
  const paused = knobs.get("paused")?.setting.value === true;
  $("pause").textContent = paused ? "Resume" : "Pause";
  $("paused-note").hidden = !(paused && isOpen);
  for (const id of ["pause", "checkpoint"]) $(id).disabled = !isOpen;
  for (const control of $("settings").querySelectorAll("input, button")) control.disabled = !isOpen;
  $("settings-note").textContent = hasEnded()
    ? "This run has ended; settings can be changed while one goes on."
    : "A change lasts until this process of the run ends. Evaluations keep the run's own settings.";
}

function askToSet(setting, value) {
  ask({ ask: "setting", setting, value }, knobs.get(setting)?.reply ?? $("reply"));
}

function ask(what, reply) {
  const id = ++nAsked;
  reply.className = "reply";
  reply.textContent = "asked the run\u2026";
  if (!send({ kind: "ask", id, ...what })) {
    showReply(reply, false, "not asked: there is no connection");
    return;
  }
  waiting.set(id, reply);
}

function showReply(reply, isDone, text) {
  reply.className = `reply ${isDone ? "done" : "refused"}`;
  reply.textContent = text;
}

function hearReplies(replies) {
  for (const { id, is_done: isDone, text } of replies) {
    const reply = waiting.get(id);
    waiting.delete(id);
    if (reply) showReply(reply, isDone, text);
  }
}

function loseReplies() {
  for (const reply of waiting.values()) showReply(reply, false, "the connection was lost before the answer; see the events");
  waiting.clear();
}

$("pause").addEventListener("click", () => askToSet("paused", knobs.get("paused")?.setting.value !== true));
$("checkpoint").addEventListener("click", () => ask({ ask: "checkpoint" }, $("reply")));
