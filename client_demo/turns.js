// @ts-check
/**
 * Whose turn it is, and how much of an answer has been heard.
 *
 * A response is wanted from its creation until somebody cuts it short; whatever else arrives is stale and dropped by its id.
 * An answer counts as said only as far as the player has played it.
 */
import { isLive, itemCreate, newId, spokenLength } from "./conversation.js";
import { OUTPUT_RATE } from "./player.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./realtime.js").Event} Event */
/** An answer under way. @typedef {{turn: Turn, audioMs: number, isComplete: boolean, playedMs: number}} Answer */
/**
 * @typedef {object} Stage what the turns are played on
 * @property {import("./conversation.js").Journal} journal
 * @property {import("./view.js").View} view
 * @property {(event: Event) => void} send
 * @property {() => import("./player.js").Player | null | undefined} player
 * @property {() => import("./conversation.js").State} state
 * @property {(cause: string) => void} move
 * @property {() => void} flatten
 * @property {(sentence: string) => void} notice
 */

const BYTES_PER_MS = (OUTPUT_RATE * 2) / 1000;
const EARLY_CUT_MS = 1000;

export class Turns {
  /** @param {Stage} stage */
  constructor(stage) {
    this.stage = stage;
    /** @type {Map<string, Answer>} by item */
    this.answers = new Map();
    /** The response whose sound is wanted. @type {string | null} */
    this.wanted = null;
    /** The response that the server is making. @type {string | null} */
    this.making = null;
    /** The person interrupted before the response began. */
    this.refuseNext = false;
    /** The server was still answering when the next answer was asked for. */
    this.askAgain = false;
    /** The item in the caption. */
    this.shown = "";
    this.numEarlyCuts = 0;
    /** When the turn's events happened, by `performance.now()`; 0: not yet. */
    this.marks = { end: 0, stopped: 0, text: 0, delta: 0 };
    this.figures = {
      ttfa: /** @type {number | null} */ (null),
      endpoint: 0,
      wording: 0,
      making: 0,
      starting: 0,
      flushes: 0,
      heard: 0,
    };
    /** @type {Record<string, (event: Event) => void>} what the server says about turns */
    this.on = {
      "input_audio_buffer.speech_started": () => {
        this.cutShort("voice");
        this.begin();
      },
      "input_audio_buffer.committed": ({ item_id }) => stage.journal.open(item_id, "user"),
      "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => this.transcribed(item_id, delta, false),
      "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => this.transcribed(item_id, transcript, true),
      "conversation.item.input_audio_transcription.failed": ({ item_id }) => this.transcribed(item_id, "", true),
      // The server knows to the word what was heard.
      "conversation.item.truncated": ({ item_id }) => stage.send({ type: "conversation.item.retrieve", item_id }),
      "conversation.item.retrieved": ({ item }) => this.correct(item),
      "response.created": ({ response }) => this.created(response.id),
      "response.output_item.added": ({ response_id, item }) => this.added(response_id, item),
      "response.output_audio_transcript.delta": (event) => this.answered(event),
      "response.output_text.delta": (event) => this.answered(event, true),
      "response.output_audio.done": ({ item_id }) => stage.player()?.end(item_id),
      "response.output_item.done": ({ item }) => this.completed(item.id),
      "response.done": ({ response }) => this.done(response),
    };
  }

  /* ---------- The person's turn ---------- */

  /** The person begins. */
  begin() {
    this.stage.view.past(true);
    this.stage.view.captionUser("…");
    this.stage.move("hear");
  }

  /** The person has finished. @param {number} endedAt when they fell silent */
  asked(endedAt) {
    this.marks = { end: endedAt, stopped: performance.now(), text: 0, delta: 0 };
    this.refuseNext = false;
    this.stage.view.clearChips();
    this.stage.move("ask");
  }

  /** A typed turn. @param {string} text may be empty if there are pictures @param {string[]} pictures data URIs */
  async type(text, pictures) {
    const { journal, view, send } = this.stage;
    await this.cutShort("hand");
    if (text) {
      const turn = journal.open(newId(), "user", { text, pictures, isDone: true });
      send(itemCreate(turn, pictures));
      view.captionUser(text);
      view.transcript(journal.turns);
    }
    view.past(true);
    this.asked(performance.now());
    send({ type: "response.create" });
  }

  /** @param {string} item @param {string} text @param {boolean} isDone */
  transcribed(item, text, isDone) {
    const { journal, view } = this.stage;
    const turn = journal.open(item, "user");
    turn.text = (isDone ? text : turn.text + text).trimStart();
    turn.isDone = isDone;
    view.captionUser(turn.text);
    if (isDone) view.transcript(journal.turns);
  }

  /* ---------- The answer ---------- */

  /** @param {string} response */
  created(response) {
    this.making = response;
    this.wanted = this.refuseNext ? null : response;
    if (this.refuseNext) this.stage.send({ type: "response.cancel", response_id: response });
    else if (this.stage.state() === "listening") this.stage.move("ask");
    this.refuseNext = false;
  }

  /** @param {string} response @param {{id: string, type: string}} item */
  added(response, { id, type }) {
    if (response !== this.wanted || type !== "message") return;
    this.answers.set(id, { turn: this.stage.journal.open(id, "assistant"), audioMs: 0, isComplete: false, playedMs: 0 });
  }

  /** @param {Event} event @param {ArrayBuffer} pcm */
  sound({ response_id, item_id }, pcm) {
    const answer = this.answers.get(item_id);
    if (response_id !== this.wanted || !answer) return;
    this.marks.delta ||= performance.now();
    answer.audioMs += pcm.byteLength / BYTES_PER_MS;
    this.stage.player()?.play(item_id, pcm);
  }

  /** @param {Event} event @param {boolean} [isRead] written only: no sound will tell how far it was heard */
  answered({ response_id, item_id, delta }, isRead = false) {
    const answer = this.answers.get(item_id);
    if (response_id !== this.wanted || !answer) return;
    this.markText();
    answer.turn.text += delta;
    if (isRead || item_id === this.shown) this.caption(item_id, isRead ? Infinity : answer.playedMs);
  }

  /** @private Shown even if no sound follows, as on a page that is read; a greeting answers nothing. */
  markText() {
    const { stopped, text } = this.marks;
    if (!stopped || text) return;
    this.marks.text = performance.now();
    this.figures.wording = this.marks.text - stopped;
  }

  /** @param {string} item */
  completed(item) {
    const answer = this.answers.get(item);
    if (answer) answer.isComplete = true;
    this.stage.player()?.end(item);
  }

  /** @param {{id: string, status: string, status_details?: any, output: {id: string}[]}} response */
  done({ id, status, status_details, output }) {
    if (this.making === id) this.making = null;
    if (this.askAgain) this.stage.send({ type: "response.create" });
    this.askAgain = false;
    if (this.wanted !== id) return;
    if (status === "failed") {
      this.stage.notice(`The answer failed: ${status_details?.error?.message ?? "the server does not say why"}`);
    }
    for (const item of output) {
      const answer = this.answers.get(item.id);
      if (answer && !answer.audioMs) this.finish(item.id, answer);
    }
    if (!this.stage.player()?.isBusy) this.stage.move("rest");
  }

  /* ---------- What is heard ---------- */

  /** The first sample of an item sounds. @param {string} item */
  first(item) {
    if (this.stage.state() !== "speaking" && this.marks.end) this.measure();
    this.caption(item, 0);
    this.stage.move("sound");
  }

  /** @private */
  measure() {
    const now = performance.now();
    const { end, stopped, delta } = this.marks;
    const ttfa = now - end + (this.stage.player()?.latencyMs ?? 0);
    Object.assign(this.figures, { ttfa, endpoint: stopped - end, making: delta - stopped, starting: now - delta });
    this.marks.end = 0;
    this.stage.view.latency(ttfa);
  }

  /** @param {string} item @param {number} ms */
  played(item, ms) {
    const answer = this.answers.get(item);
    if (answer) answer.playedMs = ms;
    this.caption(item, ms);
  }

  /** @param {string} item @param {number} ms */
  drained(item, ms) {
    const answer = this.answers.get(item);
    if (!answer) return;
    answer.playedMs = ms;
    this.acknowledge(item);
    this.finish(item, answer);
    if (!this.stage.player()?.isBusy) this.stage.move(this.making ? "pause" : "rest");
  }

  /** Tells the server how much has been played; once a second while speaking. */
  acknowledge(item = this.shown) {
    const answer = this.answers.get(item);
    if (!answer?.audioMs) return;
    const audio_end_ms = Math.round(answer.playedMs);
    this.stage.send({ type: "playback.ack", item_id: item, content_index: 0, audio_end_ms });
  }

  /** @private Nothing more will be heard of an answer that was not cut. @param {string} item @param {Answer} answer */
  finish(item, { turn, audioMs }) {
    const { journal, view } = this.stage;
    this.answers.delete(item);
    turn.isDone = true;
    if (!turn.text) journal.remove(item);
    else if (item === this.shown || !audioMs) view.captionAssistant(turn.text, turn.text.length);
    this.numEarlyCuts = 0;
    view.transcript(journal.turns);
  }

  /** @private @param {string} item @param {number} ms heard */
  caption(item, ms) {
    const answer = this.answers.get(item);
    if (!answer) return;
    const { turn, audioMs, isComplete } = answer;
    this.shown = item;
    this.stage.view.past(false);
    const spoken = ms === Infinity ? turn.text.length : spokenLength(turn.text, ms, audioMs, isComplete);
    this.stage.view.captionAssistant(turn.text, spoken);
  }

  /* ---------- Interruption ---------- */

  /** Silences the answer at once and tells the server what was heard. @param {"voice" | "hand"} by */
  async cutShort(by) {
    const { send, state, player, flatten } = this.stage;
    if (by === "hand" && this.making) send({ type: "response.cancel", response_id: this.making });
    else if (by === "hand" && state() === "thinking") this.refuseNext = true;
    this.wanted = null;
    flatten();
    const speaker = player();
    const isSounding = Boolean(speaker?.isBusy);
    if (isSounding) this.figures.flushes++;
    const heard = await speaker?.flush();
    if (!heard || !this.answers.size) return this.keepHeard([]);
    for (const item of this.answers.keys()) {
      const ms = heardOf(item, heard);
      send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms: ms });
    }
    this.keepHeard(heard);
    if (!isSounding) return;
    this.figures.heard = heard[0]?.ms ?? 0;
    if (by === "voice") this.adviseHeadphones();
  }

  /** The connection is gone, and with it every response. @param {import("./player.js").Heard[]} heard */
  drop(heard) {
    this.wanted = this.making = null;
    this.refuseNext = this.askAgain = false;
    this.keepHeard(heard);
  }

  /** @private Ends all answers where the listener stopped hearing them; what nobody heard was not said. @param {import("./player.js").Heard[]} heard */
  keepHeard(heard) {
    const { journal, view, player } = this.stage;
    for (const [item, { turn, audioMs, isComplete }] of this.answers) {
      const ms = heardOf(item, heard);
      const length = player() ? spokenLength(turn.text, ms, audioMs, isComplete) : turn.text.length; // read, not heard
      journal.cut(turn, turn.text.slice(0, length), ms);
      if (!turn.text) journal.remove(item);
      if (item === this.shown) view.captionAssistant(turn.text, turn.text.length, turn.text && " —");
    }
    if (this.answers.size) view.transcript(journal.turns);
    this.answers.clear();
  }

  /** @private @param {{id: string, role?: string, content?: {transcript?: string}[]}} item as the server has it */
  correct({ id, role, content }) {
    const { journal, view } = this.stage;
    const turn = journal.find(id);
    const text = content?.map((part) => part.transcript ?? "").join("");
    if (role !== "assistant" || !turn || turn.heardMs === null || text === undefined) return;
    journal.cut(turn, text, turn.heardMs);
    view.transcript(journal.turns);
  }

  /** @private Echo looks like a person who always interrupts at once. */
  adviseHeadphones() {
    this.numEarlyCuts = this.figures.heard < EARLY_CUT_MS ? this.numEarlyCuts + 1 : 0;
    if (this.numEarlyCuts !== 2) return;
    this.stage.notice("Is Parley interrupting itself? Headphones help, and so does push-to-talk in Settings.");
  }
}

/** @param {string} item @param {import("./player.js").Heard[]} heard @returns {number} milliseconds */
function heardOf(item, heard) {
  return heard.find((one) => one.item === item)?.ms ?? 0;
}
