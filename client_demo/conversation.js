// @ts-check
/** What was said and which state follows from what happened. No DOM, no network. */

/** The status line of every state; `html[data-state]` holds the word. */
export const SENTENCES = Object.freeze({
  idle: "Ready when you are",
  asking: "Waiting for your permission…",
  connecting: "Connecting…",
  listening: "Listening",
  hearing: "You are speaking",
  thinking: "Thinking…",
  speaking: "Speaking",
  reconnecting: "Connection lost, reconnecting…",
  error: "Something needs your attention",
});

/** @typedef {keyof typeof SENTENCES} State */

const ALWAYS = { end: "idle", fail: "error" };
const LIVE = { ...ALWAYS, lost: "reconnecting", hear: "hearing", ask: "thinking", rest: "listening" };

/** state → what happened → next state. What a row does not list changes nothing. */
export const NEXT = /** @type {Record<State, Record<string, State>>} */ ({
  idle: { start: "asking", type: "connecting", fail: "error" },
  asking: { ...ALWAYS, granted: "connecting" },
  connecting: { ...ALWAYS, ready: "listening" },
  listening: { ...LIVE, sound: "speaking" },
  hearing: { ...LIVE },
  thinking: { ...LIVE, sound: "speaking" },
  speaking: { ...LIVE, pause: "thinking" },
  reconnecting: { ...ALWAYS, ready: "listening" },
  error: { start: "asking", type: "connecting", end: "idle" },
});

/** @param {State} state @param {string} cause @returns {State} */
export function nextState(state, cause) {
  return NEXT[state][cause] ?? state;
}

/** States in which there is a session to talk to. */
export const isLive = (/** @type {State} */ state) => "lost" in NEXT[state];

/**
 * @typedef {object} Turn
 * @property {string} id of the item
 * @property {"user" | "assistant"} role
 * @property {string} text
 * @property {Date} at
 * @property {string[]} pictures data URIs
 * @property {boolean} isDone nothing more will be added
 * @property {number | null} heardMs where the listener stopped hearing a cut answer
 */

const REPLAYED_PICTURES = 2;

/** The page's own record of the conversation, in the order it was said. */
export class Journal {
  constructor() {
    /** @type {Turn[]} */
    this.turns = [];
  }

  /** @param {string} id */
  find(id) {
    return this.turns.find((turn) => turn.id === id);
  }

  /** Adds a turn once; later calls return the same. @param {string} id @param {"user" | "assistant"} role @param {Partial<Turn>} [rest] */
  open(id, role, rest = {}) {
    const known = this.find(id);
    if (known) return known;
    const turn = { id, role, text: "", at: new Date(), pictures: [], isDone: false, heardMs: null, ...rest };
    this.turns.push(turn);
    return turn;
  }

  /** @param {string} id */
  remove(id) {
    this.turns = this.turns.filter((turn) => turn.id !== id);
  }

  /** Ends an answer where the listener stopped hearing it. @param {Turn} turn @param {string} text @param {number} heardMs */
  cut(turn, text, heardMs) {
    turn.text = text.replace(/[\s—]+$/, "");
    turn.heardMs = heardMs;
    turn.isDone = true;
  }

  /** Client events that tell a new session what was said: the text, and the newest pictures. */
  replay() {
    const shown = this.turns.filter((turn) => turn.pictures.length).slice(-REPLAYED_PICTURES);
    return this.turns
      .filter((turn) => turn.text || shown.includes(turn))
      .map((turn) => itemCreate(turn, turn.role === "user" && shown.includes(turn) ? turn.pictures : []));
  }

  toText() {
    return this.turns.map((turn) => `[${clock(turn.at)}] ${NAMES[turn.role]}: ${written(turn)}\n`).join("");
  }

  toJson() {
    const turns = this.turns.map(({ id, role, text, at, pictures, heardMs }) => ({
      id,
      role,
      text,
      at: at.toISOString(),
      ...(pictures.length && { pictures }),
      ...(heardMs !== null && { interrupted_at_ms: heardMs }),
    }));
    return JSON.stringify({ made_by: "Parley", saved_at: new Date().toISOString(), turns }, null, 2);
  }
}

export const NAMES = Object.freeze({ user: "You", assistant: "Parley" });

/** @param {Date} at */
export const clock = (at) => at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** A turn as it stands in the transcript; a cut answer ends with a dash. @param {Turn} turn */
export function written(turn) {
  if (turn.heardMs !== null) return turn.text ? `${turn.text} —` : "—";
  const pictures = turn.pictures.length ? "[picture] " : "";
  return `${pictures}${turn.text || (pictures ? "" : turn.role === "user" ? "(not transcribed)" : "…")}`.trim();
}

/** @param {{id: string, role: "user" | "assistant", text: string}} turn @param {string[]} pictures data URIs */
export function itemCreate({ id, role, text }, pictures) {
  const words = text ? [{ type: role === "user" ? "input_text" : "output_text", text }] : [];
  const content = [...pictures.map((image_url) => ({ type: "input_image", image_url })), ...words];
  return { type: "conversation.item.create", item: { id, type: "message", role, content } };
}

/** An id that the server keeps as it is. */
export function newId() {
  return `item_${crypto.getRandomValues(new Uint32Array(2)).reduce((id, n) => id + n.toString(36).padStart(7, "0"), "")}`;
}

/** Time that a character takes to say, in units of a Latin letter: pauses at commas and stops, whole syllables in East Asian scripts. */
const PACE = [
  { pattern: /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u, units: 3.5 },
  { pattern: /[.!?。！？]/u, units: 6 },
  { pattern: /[,;:、，；：]/u, units: 3.5 },
];
const MS_PER_UNIT = 62;

/** @param {string} character */
const units = (character) => PACE.find(({ pattern }) => pattern.test(character))?.units ?? 1;

/**
 * How much of an answer's text has been heard. The server sends text a little before its sound and gives no word times, so
 * this spreads the text over the sound: over all of it once both are complete, else at an average pace.
 * @param {string} text received so far @param {number} playedMs @param {number} audioMs received so far
 * @param {boolean} isComplete no more of either will come
 * @returns {number} characters, at the end of a word
 */
export function spokenLength(text, playedMs, audioMs, isComplete) {
  const characters = [...text];
  const costs = characters.map(units);
  const total = costs.reduce((sum, cost) => sum + cost, 0);
  const totalMs = isComplete ? audioMs : Math.max(audioMs, total * MS_PER_UNIT);
  if (isComplete && playedMs >= audioMs - 1) return text.length;
  let left = totalMs ? (total * playedMs) / totalMs : 0;
  let length = 0;
  for (let n = 0; n < characters.length && left > 0; n++) {
    left -= costs[n];
    if (left >= 0) length += characters[n].length;
  }
  return length && wordEnd(text, length);
}

/** The end of the word that is being said at `length`. @param {string} text @param {number} length */
function wordEnd(text, length) {
  const rest = text.slice(length).search(/[\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]/u);
  return rest < 0 ? text.length : length + rest;
}

const SCRIPTS = /** @type {[RegExp, string][]} */ ([
  [/[\p{Script=Hiragana}\p{Script=Katakana}]/u, "ja"],
  [/\p{Script=Hangul}/u, "ko"],
  [/\p{Script=Han}/u, "zh"],
  [/\p{Script=Cyrillic}/u, "ru"],
  [/\p{Script=Arabic}/u, "ar"],
  [/\p{Script=Hebrew}/u, "he"],
  [/\p{Script=Devanagari}/u, "hi"],
  [/\p{Script=Greek}/u, "el"],
]);

/** The `lang` a caption's script suggests, for fonts and screen readers. @param {string} text */
export function languageOf(text) {
  return SCRIPTS.find(([script]) => script.test(text))?.[1] ?? "en";
}
