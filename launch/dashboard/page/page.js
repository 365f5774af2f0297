// The connection: news come in, what is looked at and asked for goes out.

const DRAW = {
  status: (data) => { state.status = data; drawControls(); }, figures: drawFigures, fleet: drawFleet,
  events: drawEvents, live: drawEnvironments, curves: drawCurves, checkpoints: drawCheckpoints,
  settings: drawSettings,
};
let socket = null;

function drawStatus() {
  const { run, state: runState, newest } = state.status;
  $("run").textContent = run ?? "";
  document.title = run ? `${run} - WarpZone` : "WarpZone";
  const pill = $("state"), isOpen = state.connection === "open";
  const shown = isOpen ? runState ?? "" : state.connection;
  if (pill.textContent !== shown) pill.textContent = shown;
  pill.className = `pill ${isOpen ? runState ?? "" : state.connection === "connecting" ? "" : "lost"}`;
  $("newest").textContent = isNumber(newest) ? `newest record ${age(now() - newest)} ago` : "";
  drawAges();
}

function send(message) {
  if (socket === null || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

function look() {
  send(document.hidden ? { kind: "away" } : { kind: "look", actor: view.actor, env: view.env });
}

function connect(retryMs) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  let wasOpen = false;
  socket = new WebSocket(`${scheme}://${location.host}/feed${location.search}`);
  socket.onopen = () => { wasOpen = true; look(); };
  socket.onmessage = (event) => {
    const { now: serverNow, messages, replies } = JSON.parse(event.data);
    retryMs = 500;
    state.clockSkew = serverNow - Date.now() / 1000;
    const isNew = state.connection !== "open";
    state.connection = "open";
    for (const { kind, data } of messages) DRAW[kind]?.(data);
    hearReplies(replies ?? []);
    if (isNew) drawControls();
    drawStatus();
  };
  socket.onclose = async () => {
    state.connection = "connection lost, trying again";
    loseReplies();
    drawControls();
    drawStatus();
    if (!wasOpen && await isShutOut()) {
      state.connection = "the token is not valid any more: open the newly printed address";
      drawStatus();
      return;
    }
    setTimeout(() => connect(Math.min(10000, retryMs * 2)), retryMs);
  };
}

// A server that was started again may have another token; a socket can't tell that from no server.
async function isShutOut() {
  try {
    return (await fetch(location.href, { cache: "no-store" })).status === 401;
  } catch {
    return false;
  }
}

for (const section of document.querySelectorAll("section.card")) if (section.querySelector(".empty")) showEmpty(section, true);
if ("WebSocket" in window) {
  setInterval(drawStatus, 1000);
  document.addEventListener("visibilitychange", look);
  drawControls();
  connect(500);
} else {
  $("state").textContent = "this browser has no WebSocket: use a newer one";
  $("state").className = "pill lost";
}
