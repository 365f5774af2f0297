// Environments as thumbnails, and one of them closely: picture, opinions, value, tree, text.

const OPINIONS = [["search", "search"], ["model", "world model"], ["prior", "LLM prior"]];
const OPINION_COLORS = Object.fromEntries(OPINIONS.map(([key], index) => [key, COLORS[index]]));
const view = { environments: [], actor: 0, env: 0, shown: null };

const nameOf = (e) => `actor ${e.actor} ${DOT} env ${e.env}`;
const isChosen = (e) => e.actor === view.actor && e.env === view.env;

function pictureOf(e) {
  const isPicture = typeof e.frame_png === "string" && /^[A-Za-z0-9+/=]+$/.test(e.frame_png);
  return isPicture ? `data:image/png;base64,${e.frame_png}` : null;
}

function drawEnvironments({ environments }) {
  view.environments = environments;
  showEmpty($("environments"), environments.length === 0);
  $("closely").hidden = environments.length === 0;
  if (environments.length === 0) return;
  if (!environments.some(isChosen)) {
    [view.actor, view.env] = [environments[0].actor, environments[0].env];
    look();
  }
  $("thumbnails").hidden = environments.length < 2;
  $("thumbnails").replaceChildren(...environments.map(thumbnail));
  const chosen = environments.find(isChosen);
  if (chosen.timestamp !== view.shown) drawClosely(chosen);
}

function thumbnail(e) {
  const button = make("button", isChosen(e) ? "chosen" : "");
  button.type = "button";
  button.setAttribute("aria-pressed", isChosen(e));
  const source = pictureOf(e);
  if (source) {
    const image = make("img");
    image.src = source;
    image.alt = "";
    button.append(image);
  } else {
    button.append(make("span", "words", String(e.prompt ?? "").slice(-160)));
  }
  button.append(make("b", "", nameOf(e)), make("span", "quiet", `step ${short(e.length)}`), make("span", "quiet", `value ${short(e.value)}`));
  button.addEventListener("click", () => {
    [view.actor, view.env, view.shown] = [e.actor, e.env, null];
    look();
    drawEnvironments({ environments: view.environments });
    for (const other of $("thumbnails").children) if (other.className === "chosen") other.focus();
  });
  return button;
}

function drawClosely(e) {
  view.shown = e.timestamp;
  const source = pictureOf(e);
  $("frame").hidden = !source;
  if (source) $("frame").src = source;
  $("env-name").textContent = nameOf(e);
  const facts = [["level", e.level], ["step", format(e.length, 0)], ["return so far", format(e.total_reward, 2)],
    ["value", format(e.value, 2)], ["seen at", clockTime(e.timestamp)]];
  $("env-facts").replaceChildren(...facts.filter(([, value]) => value && value !== DASH).flatMap(
    ([label, value]) => [make("dt", "", label), make("dd", "", value)],
  ));
  drawBars(e);
  drawPath(e.path);
  drawTree(e.tree);
  drawText(e);
}

function drawBars(e) {
  const opinions = OPINIONS.filter(([key]) => isList(e[key]));
  $("opinion-legend").replaceChildren(...opinions.map(([key, label]) => legendItem(label, undefined, OPINION_COLORS[key])));
  const actions = isList(e.actions) ? e.actions : [];
  const best = isList(e.search) ? e.search.indexOf(Math.max(...e.search)) : -1;
  const chosen = isNumber(e.chosen) ? e.chosen : best;
  $("bars").tBodies[0].replaceChildren(...actions.map((action, index) => {
    const row = make("tr", index === chosen ? "chosen" : "");
    const cell = make("td");
    for (const [key, label] of opinions) {
      const share = isNumber(e[key][index]) ? e[key][index] : 0;
      const bar = make("div", "bar"), fill = swatch(OPINION_COLORS[key]);
      fill.style.width = `calc((100% - 3.2em) * ${Math.min(1, Math.max(0, share))})`;
      bar.title = `${label}: ${format(share, "%")}`;
      bar.append(fill, make("span", "", format(share, "%")));
      cell.append(bar);
    }
    const words = String(action);
    const name = make("th", "", words.length > 64 ? `${words.slice(0, 63)}\u2026` : words);
    name.scope = "row";
    name.title = index === chosen ? `${action} (played next)` : action;
    row.append(name, cell);
    return row;
  }));
  const n_left = isNumber(e.n_actions) ? e.n_actions - actions.length : 0;
  $("more-actions").textContent = n_left > 0 ? `and ${n_left} actions that nobody thinks much of` : "";
}

function drawPath(path) {
  const values = isList(path?.value) ? path.value : [];
  $("path").hidden = values.length === 0;
  if (values.length === 0) return;
  const every = isNumber(path.every) ? path.every : 1;
  const steps = values.map((_, i) => i * every);
  const charts = [drawChart("Value along the episode", steps, { value: values }, 125)];
  if (isList(path.total_reward)) charts.push(drawChart("Return so far", steps, { return: path.total_reward }, 125));
  $("path").replaceChildren(...charts);
}

function drawText(e) {
  const text = e.llm_text || e.prompt || "";
  $("text-title").textContent = e.llm_text ? "What the LLM read" : "The state in words";
  $("text").hidden = !text;
  $("prompt").textContent = text;
}
