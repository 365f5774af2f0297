// Line charts with gaps, a legend of the newest or pointed-at values, and nothing else.

function range(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return low === high ? [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)] : [low, high];
}

// Labels of one axis in as many digits as tell them apart.
function axisLabel(value, low, high) {
  const digits = Math.ceil(-Math.log10((high - low) / 2)) + 1;
  const size = Math.max(Math.abs(low), Math.abs(high));
  return size >= 0.01 && size < 1e4 && digits > 0 && digits <= 6 ? format(value, Math.max(1, digits - 1)) : short(value);
}

function linePath(xs, ys, x, y) {
  let path = "", pen = "M";
  ys.forEach((value, i) => {
    if (!isNumber(value) || !isNumber(xs[i])) { pen = "M"; return; }
    path += `${pen}${x(xs[i]).toFixed(1)},${y(value).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function drawChart(title, xs, lines, height = 170) {
  const W = 360, H = height, right = 8, top = 8, bottom = 20;
  const names = Object.keys(lines);
  const newest = (name) => lines[name].findLast(isNumber);
  const [low, high] = range(names.flatMap((name) => lines[name]).filter(isNumber));
  const labels = [0, 0.5, 1].map((share) => low + share * (high - low)).map((value) => [value, axisLabel(value, low, high)]);
  const left = 12 + 7 * Math.max(5, ...labels.map(([, label]) => label.length));
  const first = xs[0], last = Math.max(xs[xs.length - 1], first + 1);
  const x = (s) => left + ((s - first) / (last - first)) * (W - left - right);
  const y = (v) => H - bottom - ((v - low) / (high - low)) * (H - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  picture.setAttribute("aria-label", `${title}: ${names.map((n) => `${n} ${short(newest(n))}`).join(", ")}`);
  for (const [value, label] of labels) {
    picture.append(
      svg("line", { class: "grid", x1: left, x2: W - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, label),
    );
  }
  for (const [s, anchor] of [[first, "start"], [last, "end"]]) {
    picture.append(svg("text", { x: x(s), y: H - 5, "text-anchor": anchor }, short(s)));
  }
  names.forEach((name, index) => {
    const path = linePath(xs, lines[name], x, y);
    const isPoint = lines[name].filter(isNumber).length === 1;  // no line to draw
    picture.append(svg("path", {
      d: isPoint ? `${path}h0.01` : path, fill: "none", stroke: COLORS[index % COLORS.length],
      "stroke-width": isPoint ? 6 : 1.7, "stroke-linejoin": "round", "stroke-linecap": "round",
    }));
  });
  const box = make("div", "chart"), legend = make("p", "legend");
  const fill = (at) => legend.replaceChildren(...names.map((name, index) => legendItem(
    name.replaceAll("_", " "), short(at === null ? newest(name) : lines[name][at]), COLORS[index % COLORS.length],
  )));
  fill(null);
  addCursor(picture, xs, x, [W, top, H - bottom], fill);
  box.append(make("h3", "", title), picture, legend);
  return box;
}

function addCursor(picture, xs, x, [width, top, bottom], onPoint) {
  const cursor = svg("line", { class: "cursor", y1: top, y2: bottom, x1: -9, x2: -9 });
  const put = (at) => { for (const end of ["x1", "x2"]) cursor.setAttribute(end, at); };
  picture.append(cursor);
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const wanted = ((event.clientX - frame.left) / frame.width) * width;
    let at = 0;
    xs.forEach((s, i) => { if (Math.abs(x(s) - wanted) < Math.abs(x(xs[at]) - wanted)) at = i; });
    put(x(xs[at]));
    onPoint(at);
  });
  picture.addEventListener("pointerleave", () => { put(-9); onPoint(null); });
}

function drawCurves({ step, charts }) {
  $("charts").replaceChildren(...charts.map((chart) => drawChart(chart.title, step, chart.lines)));
  showEmpty($("curves"), charts.length === 0);
}
