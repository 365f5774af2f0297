// The connection: news come in, what is looked at and asked for goes out.

const DRAW = {
  status: (data) => { state.status = data; drawControls(); }, figures: drawFigures, fleet: drawFleet,
  events: drawEvents, live: drawEnvironments, curves: drawCurves, checkpoints: drawCheckpoints,
  settings: drawSettings, waits: drawWaits, notes: drawNotes,
};
const SILENT_MS = 15000;  // the server sends every second, but takes long to read a long run at first
let socket = null, heardAt = 0;

function drawNotes({ notes }) {
  $("notes").textContent = notes.join(" ");
  $("notes").hidden = notes.length === 0;
}

function drawStatus() {
  const { run, newest } = state.status;
  const runState = state.farewell && !hasEnded() ? "ended" : state.status.state;
  $("run").textContent = run ?? "";
  document.title = run ? `${run} - WarpZone` : "WarpZone";
  const pill = $("state"), isSeen = state.connection === "open" || state.farewell !== "";
  const shown = isSeen ? runState ?? "" : state.connection;
  if (pill.textContent !== shown) pill.textContent = shown;
  pill.className = `pill ${isSeen ? runState ?? "" : state.connection === "connecting" ? "" : "lost"}`;
  $("newest").textContent = isNumber(newest) ? `newest record ${age(now() - newest)} ago` : "";
  $("farewell").textContent = state.farewell;
  $("farewell").hidden = state.farewell === "";
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
  heardAt = Date.now();
  socket.onopen = () => { wasOpen = true; heardAt = Date.now(); look(); };
  socket.onmessage = (event) => {
    retryMs = 500;
    heardAt = Date.now();
    hear(JSON.parse(event.data));
  };
  socket.onclose = async () => {
    socket = null;
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

function hear({ now: serverNow, messages, replies, farewell }) {
  state.clockSkew = serverNow - Date.now() / 1000;
  const isNew = state.connection !== "open";
  state.connection = "open";
  state.farewell = farewell ?? "";
  for (const { kind, data } of messages) DRAW[kind]?.(data);
  hearReplies(replies ?? []);
  if (isNew) drawControls();
  drawStatus();
}

// A socket may stay open and dead: after sleep, or where the network is gone.
function watchConnection() {
  if (socket === null || Date.now() - heardAt < SILENT_MS) return;
  const { onclose } = socket;
  socket.onclose = socket.onmessage = socket.onopen = null;
  socket.close();
  onclose();
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
  setInterval(() => { watchConnection(); drawStatus(); }, 1000);
  document.addEventListener("visibilitychange", look);
  drawControls();
  connect(500);
} else {
  $("state").textContent = "this browser has no WebSocket: use a newer one";
  $("state").className = "pill lost";
}
