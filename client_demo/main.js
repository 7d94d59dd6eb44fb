// @ts-check
/** Wires the modules to each other and owns the state word. */
import { Camera, cameraRefusal, dataUri, readPicture } from "./camera.js";
import { isLive, itemCreate, Journal, newId, nextState } from "./conversation.js";
import { devices, INPUT_RATE, Microphone, micRefusal } from "./mic.js";
import { OUTPUT_RATE, Player } from "./player.js";
import { Realtime } from "./realtime.js";
import { recall, remember } from "./settings.js";
import { Turns } from "./turns.js";
import { View } from "./view.js";
import { Waterline } from "./waterline.js";

/** What exists only while a conversation runs. @typedef {{context: AudioContext, player: Player | null, mic: Microphone}} Call */

const SECOND_OF_SOUND = INPUT_RATE * 2;
const DUCK_ABOVE = 0.05;
const DUCK_MS = 700;
const PREROLL_FRAMES = 5;
const TAIL_MS = 80; // people let go of the button with the last syllable
const SHORTEST_HOLD_MS = 250;
const LOUD_IS_RECENT_MS = 5000;
const STANDSTILL_MS = 400;
const GREETING = "Greet the user in one short, friendly sentence and ask what they would like to talk about.";
const HARMLESS = [
  "response_cancel_not_active",
  "input_audio_buffer_commit_empty",
  "item_truncate_invalid_item_id",
  "item_retrieve_invalid_item_id",
];

const settings = recall();
const journal = new Journal();
/** @type {import("./conversation.js").State} */
let state = "idle";
/** @type {Call | null} */
let call = null;
/** Typed before there was a session. @type {string | null} */
let waiting = null;
/** Since when the talk button is down; 0: it is up. */
let heldSince = 0;
let duckTimer = 0;
/** Frames from just before the talk button went down. @type {ArrayBuffer[]} */
const preroll = [];
const figures = { underruns: 0, reconnects: 0, framesUp: 0, jpegUp: 0, tripMs: 0 };

const view = new View(settings, {
  start: () => (state === "idle" || state === "error" ? start(true) : end()),
  retry: () => start(true),
  typeInstead: () => start(false),
  mute,
  hold,
  interrupt,
  ask,
  camera: toggleCamera,
  flip: () => withCamera(async () => camera.flip(await devices("videoinput"), settings.clips)),
  picture,
  unpicture,
  set,
  file,
  clear: forget,
});
const camera = new Camera(view.at["camera-preview"], {
  frame: (jpeg) => sendPicture({ type: "input_image_buffer.append" }, jpeg),
  clip: (data, header) => sendPicture({ type: "input_video_buffer.append", ...header }, data),
  ended: () => (showCamera(), notice("The camera was disconnected; pick another.")),
});
const link = new Realtime({
  url: address("v1/realtime?dialect=ga").replace(/^http/, "ws"),
  readyUrl: address("readyz"),
  key: () => settings.key,
  session,
  replay: () => journal.replay(),
  on: {
    event: (event) => on[event.type]?.(event),
    audio: (event, pcm) => turns.sound(event, pcm),
    ready,
    lost,
    failed: (sentence) => fail(sentence, { retry: true }),
  },
});
const waterline = new Waterline(view.canvas, {
  ink: () => view.inks(),
  levels: () => ({ assistant: call?.player?.level ?? 0, user: isOpenMic() ? (call?.mic.level ?? 0) : 0 }),
  state: () => state,
});
const turns = new Turns({
  journal,
  view,
  send: (event) => link.send(event),
  player: () => call?.player,
  state: () => state,
  move,
  flatten: () => waterline.flatten(),
  notice,
});
/** @type {Record<string, (event: import("./realtime.js").Event) => void>} */
const on = {
  ...turns.on,
  "session.updated": ({ session }) => listVoices(session.audio?.output?.voice),
  "input_audio_buffer.speech_stopped": () => turns.asked(fellSilentAt()),
  error: ({ error }) => {
    if (error.code === "conversation_already_has_active_response") turns.askAgain = true;
    else if (!HARMLESS.includes(error.code)) notice(error.message);
  },
};

/* ---------- The state word ---------- */

/** @param {string} cause one of conversation.js */
function move(cause) {
  state = nextState(state, cause);
  show();
}

function show() {
  const canInterrupt = state === "thinking" || state === "speaking";
  view.state(state, { hasMic: isLive(state) && Boolean(call?.mic.isOpen), isLive: isLive(state), canInterrupt });
  view.mic({ isMuted: Boolean(call?.mic.muted), isHeld: heldSince > 0, isPushToTalk: settings.mode === "ptt" });
}

/** Something that does not end the conversation. @param {string} sentence */
function notice(sentence) {
  view.alert(sentence, { dismiss: true });
}

/* ---------- Start and end ---------- */

/** @param {boolean} withMic */
async function start(withMic) {
  const text = waiting;
  hangUp();
  waiting = text;
  view.alert(null);
  const mine = (call = newCall()); // inside the click, or the context would stay suspended
  move(withMic ? "start" : "type");
  // The worklets come from the server; they load while the browser asks.
  const worklets = mine.player?.start().then(() => null, () => "The server is not answering.");
  try {
    if (withMic) await mine.mic.open(settings.mic);
  } catch (error) {
    mine.mic.close();
    if (call === mine) fail((await worklets) ?? micRefusal(error), { retry: true, typing: true });
    return;
  }
  if (call !== mine) return mine.mic.close(); // cancelled meanwhile
  if (withMic) move("granted");
  const missing = await worklets;
  if (call !== mine) return;
  if (missing) return fail(missing, { retry: true });
  if (settings.speaker) await mine.player?.setSpeaker(settings.speaker).catch(() => {}); // unplugged: the default
  if (call !== mine) return;
  keepAwake();
  listDevices();
  link.open();
}

/** @returns {Call} */
function newCall() {
  const context = new AudioContext({ latencyHint: "interactive" });
  const wake = () => context.state === "closed" || context.resume().catch(() => {});
  wake();
  context.onstatechange = () => context.state !== "running" && wake(); // phones suspend on a lock or a call
  const mic = new Microphone(context, { frame: hear, ended: loseMic });
  const under = () => figures.underruns++;
  const player = new Player(context, {
    first: (item) => turns.first(item),
    played: (item, ms) => turns.played(item, ms),
    drained: (item, ms) => turns.drained(item, ms),
    under,
  });
  // Without a secure address there are no worklets: then answers are read, not heard.
  return { context, mic, player: context.audioWorklet ? player : null };
}

/** A phone can come back with a context that says it runs while its clock stands still; then sound starts anew. */
async function revive() {
  const old = call;
  if (!old || document.hidden) return;
  old.context.resume().catch(() => {});
  const before = old.context.currentTime;
  await new Promise((resolve) => setTimeout(resolve, STANDSTILL_MS));
  if (call !== old || !isLive(state) || old.context.currentTime > before) return;
  const hadMic = old.mic.isOpen;
  turns.drop(old.player?.unfinished() ?? []);
  old.mic.close();
  old.context.close();
  const fresh = (call = newCall());
  move("rest");
  fresh.mic.mute(old.mic.muted);
  await fresh.player?.start().catch(() => {});
  if (hadMic) await changeMic();
}

function end() {
  hangUp();
  view.alert(null);
  move("end");
}

/** @param {string} sentence @param {{retry?: boolean, typing?: boolean}} offers */
function fail(sentence, offers) {
  if (waiting) view.retype(waiting);
  hangUp();
  move("fail");
  view.alert(sentence, offers);
}

/** Lets go of the connection and of every device. */
function hangUp() {
  link.close();
  turns.drop(call?.player?.unfinished() ?? []);
  call?.mic.close();
  call?.context.close();
  call = waiting = null;
  heldSince = 0;
  camera.close();
  showCamera();
  view.level(0);
}

function ready() {
  move("ready");
  view.alert(null);
  view.spoken(Boolean(call?.player));
  waterline.ripple();
  measureTrip();
  camera.restartClips();
  const text = waiting;
  waiting = null;
  if (text !== null) ask(text);
  else if (settings.greet && !journal.turns.length) {
    link.send({ type: "response.create", response: { instructions: GREETING } });
  }
}

/** @param {import("./realtime.js").Verdict} verdict @param {number} waitMs */
async function lost({ sentence }, waitMs) {
  if (isLive(state)) {
    figures.reconnects++;
    heldSince = 0;
    move("lost");
    waterline.flatten(); // or the arcs would hide that the line is broken
    turns.drop((await call?.player?.flush()) ?? []);
  } else {
    view.alert(sentence.replace("in a moment", `in ${Math.max(1, Math.round(waitMs / 1000))} s`));
  }
}

/** What `session.update` says. */
function session() {
  return {
    type: "realtime",
    output_modalities: [call?.player ? "audio" : "text"],
    audio: {
      input: {
        format: { type: "audio/pcm", rate: INPUT_RATE },
        transcription: { model: "default" },
        turn_detection: settings.mode === "ptt" ? null : { type: "server_vad" },
      },
      output: {
        format: { type: "audio/pcm", rate: OUTPUT_RATE },
        delivery: "binary",
        ...(settings.voice && { voice: settings.voice }),
      },
    },
    ...(settings.clips && { video: { input: { audio_track: "ignore" } } }),
  };
}

/* ---------- The person's side ---------- */

/** @param {string} text may be empty if there are pictures */
async function ask(text) {
  if (!isLive(state)) {
    waiting = text;
    if (state === "idle" || state === "error") start(false);
    return;
  }
  const seen = camera.isOpen && text ? await camera.snapshot() : null;
  await turns.type(text, seen ? [await dataUri(seen)] : []);
}

function interrupt() {
  if (state !== "thinking" && state !== "speaking") return;
  turns.cutShort("hand");
  move("rest");
}

/** Whether what the person says goes to the server. */
function isOpenMic() {
  return isLive(state) && (settings.mode !== "ptt" || heldSince > 0);
}

/** A frame of the microphone. @param {ArrayBuffer} pcm @param {number} level */
function hear(pcm, level) {
  camera.pulse();
  if (isOpenMic()) sendSound(pcm);
  else if (preroll.push(pcm) > PREROLL_FRAMES) preroll.shift();
  if (link.backlog > 2 * SECOND_OF_SOUND) notice("Your connection is slow: sound reaches the server late.");
  if (state !== "speaking" || settings.mode === "ptt" || level < DUCK_ABOVE) return;
  // A wrong dip costs nothing; only the server's word that somebody speaks costs the answer.
  call?.player?.duck(true);
  clearTimeout(duckTimer);
  duckTimer = setTimeout(() => call?.player?.duck(false), DUCK_MS);
}

/** @param {ArrayBuffer} pcm */
function sendSound(pcm) {
  link.sendBytes({ type: "input_audio_buffer.append" }, pcm);
  figures.framesUp++;
}

/** Pictures give way to sound on a slow line. @param {import("./realtime.js").Event} header @param {ArrayBuffer} bytes */
function sendPicture(header, bytes) {
  if (!isOpenMic() || link.backlog > SECOND_OF_SOUND) return;
  link.sendBytes(header, bytes);
  figures.jpegUp++;
}

/** When the person's voice was last heard. */
function fellSilentAt() {
  const now = performance.now();
  const loudAt = call?.mic.loudAt ?? 0;
  return now - loudAt < LOUD_IS_RECENT_MS ? loudAt : now; // a voice too soft for the page, not for the server
}

/** Push-to-talk. @param {boolean} isDown */
async function hold(isDown) {
  if (isDown === heldSince > 0 || !isLive(state)) return;
  if (isDown) {
    turns.cutShort("hand");
    heldSince = performance.now();
    preroll.splice(0).forEach(sendSound);
    turns.begin();
    camera.take();
    return;
  }
  const heldMs = performance.now() - heldSince;
  await new Promise((resolve) => setTimeout(resolve, TAIL_MS));
  if (!heldSince) return; // the connection went
  heldSince = 0;
  if (heldMs < SHORTEST_HOLD_MS) {
    link.send({ type: "input_audio_buffer.clear" });
    view.captionUser("");
    notice("Hold the button, or Space, for as long as you speak.");
    return move("rest");
  }
  link.send({ type: "input_audio_buffer.commit" });
  link.send({ type: "response.create" });
  turns.asked(Math.min(performance.now() - TAIL_MS, fellSilentAt()));
}

function mute() {
  if (!call?.mic.isOpen) return;
  call.mic.mute(!call.mic.muted);
  show();
}

/* ---------- Devices ---------- */

function loseMic() {
  notice("That microphone was disconnected; pick another.");
  show();
  listDevices();
}

/** Takes up the chosen microphone; the session does not notice. */
async function changeMic() {
  if (!isLive(state)) return;
  try {
    await call?.mic.open(settings.mic);
    view.alert(null);
  } catch (error) {
    notice(micRefusal(error));
  }
  show();
}

function toggleCamera() {
  if (!camera.isOpen) return openCamera();
  camera.close();
  showCamera();
}

function openCamera() {
  return withCamera(() => camera.open({ deviceId: settings.camera, clips: settings.clips }));
}

/** @param {() => Promise<void>} open */
async function withCamera(open) {
  try {
    await open();
    if (!call) camera.close(); // ended while the browser was asking
  } catch (error) {
    notice(cameraRefusal(error));
  }
  await showCamera();
  listDevices();
}

async function showCamera() {
  const canFlip = camera.isOpen && (await devices("videoinput")).length > 1;
  view.camera(camera.isOpen, camera.isMirrored, canFlip);
}

async function listDevices() {
  const kinds = /** @type {[string, MediaDeviceKind, string][]} */ ([
    ["mic", "audioinput", call?.mic.deviceId || settings.mic],
    ["camera", "videoinput", camera.deviceId || settings.camera],
    ["speaker", "audiooutput", settings.speaker],
  ]);
  for (const [name, kind, value] of kinds) {
    const found = await devices(kind);
    const choices = found.map(({ deviceId, label }, n) => ({ value: deviceId, label: label || `Device ${n + 1}` }));
    view.choices(name, choices.length ? choices : [{ value: "", label: "Default" }], value);
  }
}

/** @param {string} [effective] as the server has it */
function listVoices(effective) {
  const voices = [...new Set(["Chelsie", "Ethan", ...(effective ? [effective] : [])])];
  view.choices("voice", voices.map((voice) => ({ value: voice, label: voice })), effective ?? settings.voice);
}

/** Holds the screen awake while a conversation runs. */
async function keepAwake() {
  if (call && !document.hidden) await navigator.wakeLock?.request("screen").catch(() => {}); // refused on low battery
}

/* ---------- Pictures, settings, transcript ---------- */

/** @param {Blob} file */
async function picture(file) {
  try {
    const uri = await dataUri(await readPicture(file));
    const turn = journal.open(newId(), "user", { pictures: [uri], isDone: true });
    view.chip(turn.id, uri);
    link.send(itemCreate(turn, turn.pictures)); // before a session: replayed when there is one
    view.transcript(journal.turns);
  } catch {
    notice("That picture could not be read.");
  }
}

/** @param {string} id */
function unpicture(id) {
  journal.remove(id);
  link.send({ type: "conversation.item.delete", item_id: id });
  view.transcript(journal.turns);
}

/** @param {string} name @param {string | boolean} value */
function set(name, value) {
  Object.assign(settings, { [name]: value });
  remember(settings);
  view.captionsSize(settings.captions);
  if (name === "details") showFigures();
  if (name === "mode") heldSince = 0;
  if (name === "mode" || name === "voice" || name === "clips") link.update();
  if (name === "mic") changeMic();
  if (name === "speaker") call?.player?.setSpeaker(settings.speaker).catch(() => notice("That speaker could not be used."));
  if ((name === "camera" || name === "clips") && camera.isOpen) openCamera();
  show();
}

/** @param {"text" | "json"} kind */
function file(kind) {
  const name = `parley-${new Date().toISOString().slice(0, 16).replace(":", "")}`;
  return kind === "text"
    ? { name: `${name}.txt`, type: "text/plain", text: journal.toText() }
    : { name: `${name}.json`, type: "application/json", text: journal.toJson() };
}

/** Forgets what was said; a running conversation goes on in a new session. */
async function forget() {
  const goesOn = isLive(state);
  if (goesOn) {
    move("lost");
    link.close();
    turns.drop((await call?.player?.flush()) ?? []);
  }
  journal.turns = [];
  view.forget();
  if (goesOn) link.open();
}

/* ---------- Figures ---------- */

function showFigures() {
  const ms = (/** @type {number} */ value) => `${Math.round(value)} ms`;
  const { endpoint, wording, making, starting } = turns.figures;
  const shown = {
    "End of speech noticed after": ms(endpoint),
    "First text after": ms(wording),
    "First sound sent after": ms(making),
    "Played after": ms(starting),
    "Sound waiting": ms(call?.player?.bufferedMs ?? 0),
    Underruns: String(figures.underruns),
    "Round trip": ms(figures.tripMs),
  };
  view.figures(settings.details ? shown : null);
}

async function measureTrip() {
  if (!settings.details || !isLive(state)) return;
  const begun = performance.now();
  await fetch(address("healthz"), { cache: "no-store" }).catch(() => {});
  figures.tripMs = performance.now() - begun;
}

/** @param {string} path beside this page */
function address(path) {
  return new URL(path, document.baseURI).href;
}

setInterval(() => view.level(call?.mic.level ?? 0), 100);
setInterval(() => {
  if (state === "speaking") turns.acknowledge();
  showFigures();
}, 1000);
setInterval(measureTrip, 5000);
navigator.mediaDevices?.addEventListener("devicechange", listDevices);
document.addEventListener("visibilitychange", () => {
  revive();
  keepAwake();
});
const debug = {
  state: () => state,
  ttfa_ms: () => turns.figures.ttfa,
  underruns: () => figures.underruns,
  buffered_ms: () => call?.player?.bufferedMs ?? 0,
  flushes: () => turns.figures.flushes,
  reconnects: () => figures.reconnects,
  frames_up: () => figures.framesUp,
  jpeg_up: () => figures.jpegUp,
  heard_ms: () => turns.figures.heard,
};
const getters = Object.entries(debug).map(([name, get]) => [name, { get, enumerable: true }]);
Object.defineProperty(window, "omniDebug", { value: Object.defineProperties({}, Object.fromEntries(getters)) });
view.captionsSize(settings.captions);
listDevices();
listVoices();
show();
