// @ts-check
/** Wires the modules to each other and owns the state word. */
import { Camera, dataUri, readPicture } from "./camera.js";
import { isLive, itemCreate, Journal, newId, nextState, spokenLength } from "./conversation.js";
import { devices, FRAME_MS, INPUT_RATE, Microphone } from "./mic.js";
import { OUTPUT_RATE, Player } from "./player.js";
import { Realtime } from "./realtime.js";
import { View } from "./view.js";
import { Waterline } from "./waterline.js";

/** @typedef {import("./conversation.js").State} State */
/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./realtime.js").Event} Event */
/** What exists only while a conversation runs. @typedef {{context: AudioContext, player: Player | null, mic: Microphone}} Call */
/** An answer under way. @typedef {{turn: Turn, audioMs: number, isComplete: boolean, playedMs: number}} Answer */

const BYTES_PER_MS = (OUTPUT_RATE * 2) / 1000;
const SECOND_OF_SOUND = INPUT_RATE * 2;
const DUCK_ABOVE = 0.05;
const DUCK_MS = 700;
const PREROLL_FRAMES = 5;
const TAIL_MS = 80; // people let go of the button with the last syllable
const SHORTEST_HOLD_MS = 250;
const EARLY_CUT_MS = 1000;
const GREETING = "Greet the user in one short, friendly sentence and ask what they would like to talk about.";
const HARMLESS = ["response_cancel_not_active", "input_audio_buffer_commit_empty", "item_truncate_invalid_item_id", "item_retrieve_invalid_item_id"];
const STORE = "parley";
const DEFAULTS = { mode: "free", voice: "", mic: "", camera: "", speaker: "", captions: "medium", greet: false, clips: false, details: false, key: "" };

const settings = remembered();
const journal = new Journal();
/** @type {State} */
let state = "idle";
/** @type {Call | null} */
let call = null;
/** @type {Map<string, Answer>} by item */
const answers = new Map();
/** The response whose sound is wanted; anything else is stale. @type {string | null} */
let wanted = null;
/** The response that the server is making. @type {string | null} */
let making = null;
/** The person interrupted before the response began. */
let refuseNext = false;
/** The answer in the caption. @type {string} */
let shown = "";
/** Typed before there was a session. @type {string | null} */
let waiting = null;
let isHolding = false;
let numEarlyCuts = 0;
let duckTimer = 0;
/** @type {ArrayBuffer[]} */
const preroll = [];
/** When things happened in the turn under way, by `performance.now()`. */
let marks = { end: 0, stopped: 0, delta: 0 };
const figures = { ttfa: /** @type {number | null} */ (null), underruns: 0, flushes: 0, reconnects: 0, framesUp: 0, jpegUp: 0, heard: 0, endpoint: 0, making: 0, starting: 0, trip: 0 };

const view = new View(settings, { start: startOrEnd, mute, camera: toggleCamera, flip, interrupt, hold, retry: () => start(true), typeInstead: () => start(false), ask, picture, unpicture, set, file, clear: forget });
const camera = new Camera(view.at["camera-preview"], {
  frame: sendFrame,
  clip: (data, header) => hasRoom() && link.sendBytes({ type: "input_video_buffer.append", ...header }, data),
  ended: () => (showCamera(), notice("The camera was disconnected; pick another.")),
});
const link = new Realtime({
  url: address("v1/realtime?dialect=ga").replace(/^http/, "ws"),
  readyUrl: address("readyz"),
  key: () => String(settings.key),
  session,
  replay: () => journal.replay(),
  on: { event: receive, audio: receiveAudio, ready, lost, failed: (sentence) => fail(sentence, { retry: true }) },
});
const waterline = new Waterline(view.canvas, {
  ink: () => ({ line: inkOf(".latency", "--rule"), assistant: inkOf("[data-testid=caption-assistant]"), user: inkOf("[data-testid=caption-user]") }),
  levels: () => ({ assistant: call?.player?.level ?? 0, user: isOpenMic() ? (call?.mic.level ?? 0) : 0 }),
  state: () => state,
});

/* ---------- The state word ---------- */

/** @param {string} cause of conversation.js */
function move(cause) {
  state = nextState(state, cause);
  show();
}

function show() {
  const canInterrupt = state === "thinking" || state === "speaking";
  view.state(state, { hasMic: isLive(state) && Boolean(call?.mic.isOpen), isLive: isLive(state), canInterrupt });
  view.mic({ isMuted: Boolean(call?.mic.muted), isHeld: isHolding, isPushToTalk: settings.mode === "ptt" });
}

/* ---------- Start and end ---------- */

function startOrEnd() {
  if (state === "idle" || state === "error") start(true);
  else end();
}

/** @param {boolean} withMic */
async function start(withMic) {
  hangUp();
  view.alert(null);
  const mine = (call = newCall()); // inside the click, or the context would stay suspended
  move(withMic ? "start" : "type");
  const worklets = mine.player?.start().then(() => null, () => "The server is not answering."); // it serves them too
  try {
    if (withMic) await mine.mic.open(String(settings.mic));
  } catch (error) {
    mine.mic.close();
    if (call === mine) fail((await worklets) ?? micSentence(error), { retry: true, typing: true });
    return;
  }
  if (call !== mine) return mine.mic.close(); // cancelled while the browser was asking
  if (withMic) move("granted");
  const missing = await worklets;
  if (call !== mine) return;
  if (missing) return fail(missing, { retry: true });
  if (settings.speaker) await mine.player?.setSpeaker(String(settings.speaker)).catch(() => {}); // unplugged: the default
  keepAwake();
  listDevices();
  link.open();
}

/** @returns {Call} */
function newCall() {
  const context = new AudioContext({ latencyHint: "interactive" });
  const wake = () => context.state === "closed" || context.resume().catch(() => {});
  wake();
  context.onstatechange = () => call?.context === context && context.state !== "running" && wake(); // phones suspend on a lock or a call
  const mic = new Microphone(context, { frame: sendSound, ended: loseMic });
  // Without a secure address there are no worklets: then answers are read, not heard.
  const player = context.audioWorklet ? new Player(context, { first, under, drained, played }) : null;
  return { context, mic, player };
}

function end() {
  hangUp();
  camera.close();
  showCamera();
  view.alert(null);
  move("end");
}

/** Lets go of the connection and of the devices. */
function hangUp() {
  link.close();
  if (call?.player) cutAnswers(call.player.unfinished());
  call?.mic.close();
  call?.context.close();
  call = null;
  waiting = null;
  isHolding = false;
  making = wanted = null;
  view.level(0);
}

/** @param {string} sentence @param {{retry?: boolean, typing?: boolean}} offers */
function fail(sentence, offers) {
  hangUp();
  camera.close();
  showCamera();
  move("fail");
  view.alert(sentence, offers);
}

/** Something that does not end the conversation. @param {string} sentence */
function notice(sentence) {
  view.alert(sentence, { dismiss: true });
}

function ready() {
  move("ready");
  view.alert(null);
  view.spoken(Boolean(call?.player));
  camera.restartClips();
  const text = waiting;
  waiting = null;
  if (text !== null) ask(text);
  else if (settings.greet && !journal.turns.length) respond({ instructions: GREETING });
}

/** @param {import("./realtime.js").Verdict} verdict @param {number} waitMs */
async function lost({ sentence }, waitMs) {
  if (isLive(state)) {
    figures.reconnects++;
    making = wanted = null;
    isHolding = false;
    move("lost");
    cutAnswers((await call?.player?.flush()) ?? []);
  } else if (state === "connecting" || state === "reconnecting") {
    view.alert(sentence.replace("in a moment", `in ${Math.max(1, Math.round(waitMs / 1000))} s`));
  }
}

function session() {
  const isSpoken = Boolean(call?.player);
  return {
    type: "realtime",
    output_modalities: [isSpoken ? "audio" : "text"],
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

/* ---------- What the server says ---------- */

/** @type {Record<string, (event: Event) => void>} */
const on = {
  "session.updated": ({ session }) => listVoices(session.audio?.output?.voice),
  "input_audio_buffer.speech_started": () => {
    cutShort("voice");
    move("hear");
    view.past(true);
    view.captionUser("…");
  },
  "input_audio_buffer.speech_stopped": () => asked(call?.mic.loudAt || performance.now()),
  "input_audio_buffer.committed": ({ item_id }) => journal.open(item_id, "user"),
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => transcribed(item_id, delta, false),
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => transcribed(item_id, transcript, true),
  "conversation.item.input_audio_transcription.failed": ({ item_id }) => transcribed(item_id, "", true),
  "conversation.item.retrieved": ({ item }) => correct(item),
  // The server knows to the word what was heard.
  "conversation.item.truncated": ({ item_id }) => link.send({ type: "conversation.item.retrieve", item_id }),
  "response.created": ({ response }) => {
    making = response.id;
    wanted = refuseNext ? null : response.id;
    if (refuseNext) link.send({ type: "response.cancel", response_id: response.id });
    else if (state === "listening") move("ask");
    refuseNext = false;
  },
  "response.output_item.added": ({ response_id, item }) => {
    if (response_id !== wanted || item.type !== "message") return;
    answers.set(item.id, { turn: journal.open(item.id, "assistant"), audioMs: 0, isComplete: false, playedMs: 0 });
  },
  "response.output_audio_transcript.delta": answered,
  "response.output_text.delta": (event) => {
    answered(event);
    if (event.response_id === wanted) caption(event.item_id, Infinity);
  },
  "response.output_audio.done": ({ item_id }) => call?.player?.end(item_id),
  "response.output_item.done": ({ item }) => {
    const answer = answers.get(item.id);
    if (answer) answer.isComplete = true;
    call?.player?.end(item.id);
  },
  "response.done": responseDone,
  error: ({ error }) => {
    if (!HARMLESS.includes(error.code)) notice(error.message);
  },
};

/** @param {Event} event */
function receive(event) {
  on[event.type]?.(event);
}

/** @param {Event} event @param {ArrayBuffer} pcm */
function receiveAudio({ response_id, item_id }, pcm) {
  const answer = answers.get(item_id);
  if (response_id !== wanted || !answer || !call?.player) return;
  marks.delta ||= performance.now();
  answer.audioMs += pcm.byteLength / BYTES_PER_MS;
  call.player.play(item_id, pcm);
}

/** @param {Event} event */
function answered({ response_id, item_id, delta }) {
  const answer = answers.get(item_id);
  if (response_id !== wanted || !answer) return;
  answer.turn.text += delta;
  if (item_id === shown) caption(item_id, answer.playedMs);
}

/** @param {Event} event */
function responseDone({ response }) {
  if (making === response.id) making = null;
  if (response.id !== wanted) return;
  if (response.status === "failed") notice(`The answer failed: ${response.status_details?.error?.message ?? "the server does not say why"}`);
  for (const { id } of response.output) {
    const answer = answers.get(id);
    if (answer && !answer.audioMs) finish(id, answer);
  }
  if (!call?.player?.isBusy) move("rest");
}

/* ---------- Turns ---------- */

/** The person's turn is over. @param {number} endedAt when they fell silent */
function asked(endedAt) {
  marks = { end: endedAt, stopped: performance.now(), delta: 0 };
  refuseNext = false;
  view.clearChips();
  move("ask");
}

/** @param {string} text may be empty if there are pictures */
async function ask(text) {
  if (!isLive(state)) {
    if (state === "idle" || state === "error") start(false);
    waiting = text;
    return;
  }
  await cutShort("hand");
  const seen = camera.isOpen ? await camera.snapshot() : null;
  const pictures = seen ? [await dataUri(seen)] : [];
  const turn = journal.open(newId(), "user", { text, isDone: true, pictures });
  if (text) {
    link.send(itemCreate(turn, pictures));
    view.captionUser(text);
  }
  view.past(true);
  view.transcript(journal.turns);
  asked(performance.now());
  respond();
}

/** @param {object} [response] */
function respond(response) {
  link.send({ type: "response.create", ...(response && { response }) });
}

/** @param {string} item @param {string} text @param {boolean} isDone */
function transcribed(item, text, isDone) {
  const turn = journal.open(item, "user");
  turn.text = (isDone ? text : turn.text + text).trimStart();
  turn.isDone = isDone;
  view.captionUser(turn.text);
  if (isDone) view.transcript(journal.turns);
}

/** @param {{id: string, role?: string, content?: {transcript?: string}[]}} item as the server has it */
function correct({ id, role, content }) {
  const turn = journal.find(id);
  const text = content?.map((part) => part.transcript ?? "").join("");
  if (role !== "assistant" || !turn || turn.heardMs === null || text === undefined) return;
  journal.cut(turn, text, turn.heardMs);
  view.transcript(journal.turns);
}

/** Interrupts whatever is being answered. @param {"voice" | "hand"} by */
async function cutShort(by) {
  if (by === "hand" && making) link.send({ type: "response.cancel", response_id: making });
  else if (by === "hand" && state === "thinking") refuseNext = true;
  wanted = null;
  waterline.flatten();
  if (!call?.player?.isBusy) return;
  figures.flushes++;
  const heard = await call.player.flush();
  for (const { item, ms } of heard) {
    link.send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms: ms });
  }
  figures.heard = heard[0]?.ms ?? 0;
  cutAnswers(heard);
  if (by === "voice") adviseHeadphones(figures.heard);
}

/** Ends answers where the listener stopped hearing them. @param {import("./player.js").Heard[]} heard */
function cutAnswers(heard) {
  for (const { item, ms } of heard) {
    const answer = answers.get(item);
    if (!answer) continue;
    const said = answer.turn.text.slice(0, spokenLength(answer.turn.text, ms, answer.audioMs, answer.isComplete));
    journal.cut(answer.turn, said, ms);
    answers.delete(item);
    if (!said) journal.remove(item);
    if (item === shown) view.captionAssistant(answer.turn.text, answer.turn.text.length, said && " —");
  }
  if (heard.length) view.transcript(journal.turns);
}

async function interrupt() {
  if (state !== "thinking" && state !== "speaking") return;
  const cut = cutShort("hand");
  move("rest");
  await cut;
}

/** Echo looks like a person who always interrupts at once. @param {number} heardMs */
function adviseHeadphones(heardMs) {
  numEarlyCuts = heardMs < EARLY_CUT_MS ? numEarlyCuts + 1 : 0;
  if (numEarlyCuts === 2) notice("Is Parley interrupting itself? Headphones help, and so does push-to-talk in Settings.");
}

/* ---------- What is heard ---------- */

/** @param {string} item */
function first(item) {
  if (state !== "speaking" && marks.end) {
    const now = performance.now();
    figures.ttfa = now - marks.end + (call?.player?.latencyMs ?? 0);
    figures.endpoint = marks.stopped - marks.end;
    figures.making = marks.delta - marks.stopped;
    figures.starting = now - marks.delta;
    marks.end = 0;
    view.latency(figures.ttfa);
  }
  shown = item;
  caption(item, 0);
  move("sound");
}

function under() {
  figures.underruns++;
}

/** @param {string} item @param {number} ms */
function played(item, ms) {
  const answer = answers.get(item);
  if (answer) answer.playedMs = ms;
  caption(item, ms);
}

/** @param {string} item @param {number} ms */
function drained(item, ms) {
  const answer = answers.get(item);
  if (!answer) return;
  acknowledge(item, ms);
  finish(item, answer);
  if (!call?.player?.isBusy) move(making ? "pause" : "rest");
}

/** Nothing more will be heard of an answer that was not cut. @param {string} item @param {Answer} answer */
function finish(item, answer) {
  answers.delete(item);
  answer.turn.isDone = true;
  if (!answer.turn.text) journal.remove(item);
  else if (item === shown || !answer.audioMs) view.captionAssistant(answer.turn.text, answer.turn.text.length);
  numEarlyCuts = 0;
  view.transcript(journal.turns);
}

/** @param {string} item @param {number} ms heard */
function caption(item, ms) {
  const answer = answers.get(item);
  if (!answer) return;
  shown = item;
  const { turn, audioMs, isComplete } = answer;
  view.past(false);
  view.captionAssistant(turn.text, ms === Infinity ? turn.text.length : spokenLength(turn.text, ms, audioMs, isComplete));
}

/** @param {string} item @param {number} ms */
function acknowledge(item, ms) {
  link.send({ type: "playback.ack", item_id: item, content_index: 0, audio_end_ms: Math.round(ms) });
}

/* ---------- What is sent ---------- */

/** Whether what the person says is going to the server. */
function isOpenMic() {
  return isLive(state) && (settings.mode !== "ptt" || isHolding);
}

/** Pictures give way to sound on a slow line. */
function hasRoom() {
  return isOpenMic() && link.backlog < SECOND_OF_SOUND;
}

/** @param {ArrayBuffer} pcm @param {number} level */
function sendSound(pcm, level) {
  if (isOpenMic()) upload(pcm);
  else if (preroll.push(pcm) > PREROLL_FRAMES) preroll.shift();
  if (link.backlog > 2 * SECOND_OF_SOUND) notice("Your connection is slow: sound reaches the server late.");
  if (state !== "speaking" || settings.mode === "ptt" || level < DUCK_ABOVE) return;
  // A wrong dip costs nothing; only the server's word that somebody speaks costs the answer.
  call?.player?.duck(true);
  clearTimeout(duckTimer);
  duckTimer = setTimeout(() => call?.player?.duck(false), DUCK_MS);
}

/** @param {ArrayBuffer} pcm */
function upload(pcm) {
  link.sendBytes({ type: "input_audio_buffer.append" }, pcm);
  figures.framesUp++;
}

/** @param {ArrayBuffer} jpeg */
function sendFrame(jpeg) {
  if (!hasRoom()) return;
  link.sendBytes({ type: "input_image_buffer.append" }, jpeg);
  figures.jpegUp++;
}

let heldSince = 0;

/** Push-to-talk. @param {boolean} isDown */
async function hold(isDown) {
  if (isDown === isHolding || !isLive(state)) return;
  if (isDown) {
    cutShort("hand");
    heldSince = performance.now();
    isHolding = true;
    preroll.splice(0).forEach(upload);
    view.past(true);
    view.captionUser("…");
    camera.take();
    return move("hear");
  }
  const heldMs = performance.now() - heldSince;
  await new Promise((resolve) => setTimeout(resolve, TAIL_MS));
  if (!isHolding) return;
  isHolding = false;
  if (heldMs < SHORTEST_HOLD_MS) {
    link.send({ type: "input_audio_buffer.clear" });
    view.captionUser("");
    notice("Hold the button, or Space, for as long as you speak.");
    return move("rest");
  }
  link.send({ type: "input_audio_buffer.commit" });
  respond();
  asked(Math.min(performance.now() - TAIL_MS, call?.mic.loudAt || Infinity));
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
    await call?.mic.open(String(settings.mic));
    view.alert(null);
  } catch (error) {
    notice(micSentence(error));
  }
  show();
}

async function toggleCamera() {
  if (camera.isOpen) {
    camera.close();
    return showCamera();
  }
  await withCamera(() => camera.open({ deviceId: String(settings.camera), clips: Boolean(settings.clips) }));
}

async function flip() {
  await withCamera(async () => camera.flip(await devices("videoinput"), Boolean(settings.clips)));
}

/** @param {() => Promise<void>} open */
async function withCamera(open) {
  try {
    await open();
    if (!call) camera.close(); // ended while the browser was asking
  } catch (error) {
    notice(cameraSentence(error));
  }
  await showCamera();
  listDevices();
}

async function showCamera() {
  view.camera(camera.isOpen, camera.isMirrored, false);
  if (!camera.isOpen) return;
  const canFlip = (await devices("videoinput")).length > 1;
  view.camera(camera.isOpen, camera.isMirrored, canFlip);
}

async function listDevices() {
  const kinds = /** @type {[string, MediaDeviceKind, string][]} */ ([
    ["mic", "audioinput", call?.mic.deviceId || String(settings.mic)],
    ["camera", "videoinput", camera.deviceId || String(settings.camera)],
    ["speaker", "audiooutput", String(settings.speaker)],
  ]);
  for (const [name, kind, value] of kinds) {
    const found = (await devices(kind)).map(({ deviceId, label }, n) => ({ value: deviceId, label: label || `Device ${n + 1}` }));
    view.choices(name, found.length ? found : [{ value: "", label: "Default" }], value);
  }
}

/** @param {string} [effective] as the server has it */
function listVoices(effective) {
  const voices = [...new Set(["Chelsie", "Ethan", ...(effective ? [effective] : [])])];
  view.choices("voice", voices.map((voice) => ({ value: voice, label: voice })), effective ?? String(settings.voice));
}

/** @param {unknown} error */
function micSentence(error) {
  const sentences = /** @type {Record<string, string>} */ ({
    SecurityError: "Browsers only allow the microphone on https:// or localhost. Open this page over one of those.",
    NotAllowedError: "Microphone access was blocked. Allow it in the address bar, then try again.",
    NotFoundError: "No microphone was found. Plug one in, or continue by typing.",
    NotReadableError: "Another program is using the microphone.",
    OverconstrainedError: "That microphone was disconnected; pick another.",
  });
  return sentences[nameOf(error)] ?? `The microphone could not be opened (${error}).`;
}

/** @param {unknown} error */
function cameraSentence(error) {
  const sentences = /** @type {Record<string, string>} */ ({
    SecurityError: "Browsers only allow the camera on https:// or localhost. Open this page over one of those.",
    NotAllowedError: "Camera access was blocked. Allow it in the address bar, then press Camera again.",
    NotFoundError: "No camera was found. You can drop a picture here instead.",
    NotReadableError: "Another program is using the camera.",
    OverconstrainedError: "That camera was disconnected; pick another.",
  });
  return sentences[nameOf(error)] ?? `The camera could not be opened (${error}).`;
}

/** @param {unknown} error */
const nameOf = (error) => (error instanceof DOMException || error instanceof Error ? error.name : "");

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
  remember();
  if (name === "captions") document.documentElement.dataset.captions = String(value);
  if (name === "details") showFigures();
  if (name === "mode") isHolding = false;
  if (name === "mode" || name === "voice" || name === "clips") link.update();
  if (name === "mic") changeMic();
  if (name === "speaker") call?.player?.setSpeaker(String(value)).catch(() => notice("That speaker could not be used."));
  if ((name === "camera" || name === "clips") && camera.isOpen) {
    withCamera(() => camera.open({ deviceId: String(settings.camera), clips: Boolean(settings.clips) }));
  }
  show();
}

/** @param {"text" | "json"} kind */
function file(kind) {
  const day = new Date().toISOString().slice(0, 16).replace(":", "");
  return kind === "text"
    ? { name: `parley-${day}.txt`, type: "text/plain", text: journal.toText() }
    : { name: `parley-${day}.json`, type: "application/json", text: journal.toJson() };
}

/** Forgets what was said; a running conversation goes on in a new session. */
function forget() {
  const wasLive = isLive(state);
  journal.turns = [];
  answers.clear();
  view.transcript([]);
  view.clearChips();
  view.captionAssistant("", 0);
  view.captionUser("");
  if (!wasLive) return;
  call?.player?.flush();
  making = wanted = null;
  move("lost");
  link.open();
}

/** @returns {typeof DEFAULTS & Record<string, string | boolean>} */
function remembered() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(STORE) ?? "{}"), key: sessionStorage.getItem(STORE) ?? "" };
  } catch {
    return { ...DEFAULTS }; // storage may be forbidden
  }
}

function remember() {
  try {
    const { key, ...rest } = settings;
    localStorage.setItem(STORE, JSON.stringify(rest));
    sessionStorage.setItem(STORE, String(key)); // a key outlives no window
  } catch {
    // The choice holds for this visit.
  }
}

/* ---------- Figures ---------- */

function showFigures() {
  const ms = (/** @type {number} */ value) => `${Math.round(value)} ms`;
  view.figures(
    !settings.details
      ? null
      : {
          "End of speech noticed after": ms(figures.endpoint),
          "First sound sent after": ms(figures.making),
          "Played after": ms(figures.starting),
          "Sound waiting": ms(call?.player?.bufferedMs ?? 0),
          Underruns: String(figures.underruns),
          "Round trip": ms(figures.trip),
        },
  );
}

async function measureTrip() {
  if (!settings.details || !call) return;
  const begun = performance.now();
  await fetch(address("healthz"), { cache: "no-store" }).catch(() => {});
  figures.trip = performance.now() - begun;
}

/** @param {string} path beside this page */
function address(path) {
  return new URL(path, document.baseURI).href;
}

/** @param {string} selector @param {string} [token] */
function inkOf(selector, token) {
  const probe = /** @type {HTMLElement} */ (document.querySelector(selector));
  if (!token) return getComputedStyle(probe).color;
  const style = getComputedStyle(document.querySelector(".dock button:last-child") ?? probe);
  return style.borderTopColor;
}

setInterval(() => view.level(call?.mic.level ?? 0), 100);
setInterval(() => {
  const answer = answers.get(shown);
  if (state === "speaking" && answer) acknowledge(shown, answer.playedMs);
  showFigures();
}, 1000);
setInterval(measureTrip, 5000);
navigator.mediaDevices?.addEventListener("devicechange", listDevices);
document.addEventListener("visibilitychange", () => {
  call?.context.resume();
  keepAwake();
});
document.documentElement.dataset.captions = String(settings.captions);
Object.defineProperty(window, "omniDebug", {
  value: Object.freeze({
    get state() { return state; },
    get ttfa_ms() { return figures.ttfa; },
    get underruns() { return figures.underruns; },
    get buffered_ms() { return call?.player?.bufferedMs ?? 0; },
    get flushes() { return figures.flushes; },
    get reconnects() { return figures.reconnects; },
    get frames_up() { return figures.framesUp; },
    get jpeg_up() { return figures.jpegUp; },
    get heard_ms() { return figures.heard; },
  }),
});
listDevices();
listVoices();
show();
