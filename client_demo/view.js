// @ts-check
/** Every DOM write and every key: the rest of the page does not touch the document. */
import { clock, languageOf, NAMES, SENTENCES, written } from "./conversation.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./conversation.js").State} State */
/**
 * @typedef {object} Actions
 * @property {() => void} start start, cancel or end, as the state has it
 * @property {() => void} mute @property {() => void} camera @property {() => void} flip @property {() => void} interrupt
 * @property {(isDown: boolean) => void} hold push-to-talk
 * @property {() => void} retry @property {() => void} typeInstead
 * @property {(text: string) => void} ask @property {(file: Blob) => void} picture @property {(id: string) => void} unpicture
 * @property {(name: string, value: string | boolean) => void} set
 * @property {(kind: "text" | "json") => {name: string, type: string, text: string}} file @property {() => void} clear
 */

const LONGEST_AHEAD = 90; // characters not heard yet that are shown: about a line
const LONGEST_USER = 320;
const CONTROLS = "button, a, input, select, textarea, summary, meter, [contenteditable]";
const START_WORDS = { idle: "Start", error: "Start", asking: "Cancel" };

export class View {
  /** @param {Record<string, string | boolean>} settings @param {Actions} actions */
  constructor(settings, actions) {
    this.actions = actions;
    this.root = document.documentElement;
    const found = [...document.querySelectorAll("[data-testid]")];
    /** @type {Record<string, any>} elements by data-testid */
    this.at = Object.fromEntries(found.map((element) => [/** @type {HTMLElement} */ (element).dataset.testid, element]));
    this.canvas = /** @type {HTMLCanvasElement} */ (document.querySelector("canvas"));
    this.sheet = this.query("aside");
    this.log = this.query("aside ol");
    this.chips = this.query(".chips");
    this.settings = /** @type {HTMLDialogElement} */ (this.query("dialog.settings"));
    this.confirm = /** @type {HTMLDialogElement} */ (this.query("dialog.confirm"));
    this.isHolding = false;
    this.listen();
    this.listenToSettings(settings);
    this.listenToKeys();
    this.listenToPictures();
  }

  /** @private @param {string} selector */
  query(selector) {
    return /** @type {HTMLElement} */ (document.querySelector(selector));
  }

  /** @private */
  listen() {
    const { at, actions } = this;
    const clicks = /** @type {Record<string, () => void>} */ ({
      start: actions.start,
      camera: actions.camera,
      flip: actions.flip,
      interrupt: actions.interrupt,
      retry: actions.retry,
      "type-instead": actions.typeInstead,
      dismiss: () => this.alert(null),
      settings: () => this.settings.showModal(),
      "close-settings": () => this.settings.close(),
      transcript: () => this.toggleTranscript(),
      "close-transcript": () => this.toggleTranscript(),
      download: () => save(actions.file("text")),
      "download-json": () => save(actions.file("json")),
      clear: () => this.confirm.showModal(),
      "clear-cancel": () => this.confirm.close(),
      "clear-confirm": () => (this.confirm.close(), actions.clear()),
    });
    for (const [name, action] of Object.entries(clicks)) at[name].addEventListener("click", action);
    for (const dialog of [this.settings, this.confirm]) {
      dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
    }
    const press = (/** @type {boolean} */ isDown) => this.isPushToTalk && this.hold(isDown);
    at.mute.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      at.mute.setPointerCapture(event.pointerId);
      press(true);
    });
    for (const name of ["pointerup", "pointercancel", "blur"]) at.mute.addEventListener(name, () => press(false));
    at.mute.addEventListener("contextmenu", (/** @type {Event} */ event) => this.isPushToTalk && event.preventDefault());
    at.mute.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (!this.isPushToTalk) actions.mute();
      // A screen reader clicks without a pointer or a key: it toggles.
      else if (event.detail === 0 && !this.isKeyed) this.hold(!this.isHolding);
    });
    this.query(".composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = at["text-input"].value.trim();
      if (text || this.chips.childElementCount) actions.ask(text);
      at["text-input"].value = "";
    });
  }

  get isPushToTalk() {
    return this.root.dataset.mode === "ptt";
  }

  /** @private @param {boolean} isDown */
  hold(isDown) {
    if (isDown === this.isHolding || this.at.mute.disabled) return;
    this.isHolding = isDown;
    this.actions.hold(isDown);
  }

  /** @private @param {Record<string, string | boolean>} settings */
  listenToSettings(settings) {
    const fields = /** @type {NodeListOf<HTMLInputElement>} */ (this.settings.querySelectorAll("[name]"));
    this.query(".rows").addEventListener("submit", (event) => event.preventDefault());
    for (const field of fields) {
      const value = settings[field.name];
      if (field.type === "checkbox") field.checked = Boolean(value);
      else if (field.type === "radio") field.checked = field.value === value;
      else field.value = String(value ?? "");
      field.addEventListener("change", () => {
        this.actions.set(field.name, field.type === "checkbox" ? field.checked : field.value);
      });
    }
  }

  /** @private */
  listenToKeys() {
    document.addEventListener("keydown", (event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      const isTalk = event.key === " " && (target === this.at.mute || !target.closest(CONTROLS));
      this.isKeyed = event.key === " " || event.key === "Enter";
      if (this.settings.open || this.confirm.open || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") return this.escape();
      if (isTalk && (this.isPushToTalk || target !== this.at.mute)) {
        event.preventDefault();
        if (event.repeat || this.at.mute.disabled) return;
        return this.isPushToTalk ? this.hold(true) : this.actions.mute();
      }
      if (target.closest("input, select, textarea") || event.repeat) return;
      if (event.key.toLowerCase() === "c" && !this.at.camera.disabled) this.actions.camera();
      if (event.key.toLowerCase() === "t") this.toggleTranscript();
    });
    document.addEventListener("keyup", (event) => {
      if (event.key === " " && this.isPushToTalk) this.hold(false);
      setTimeout(() => (this.isKeyed = false));
    });
    addEventListener("blur", () => this.hold(false));
  }

  /** @private */
  escape() {
    if (!this.sheet.hidden && this.sheet.contains(document.activeElement)) this.toggleTranscript();
    else this.actions.interrupt();
  }

  /** @private */
  listenToPictures() {
    const take = (/** @type {DataTransfer | null} */ transfer) => {
      const pictures = [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
      pictures.forEach((file) => this.actions.picture(file));
      return pictures.length > 0;
    };
    const mark = (/** @type {boolean} */ isOver) => document.body.classList.toggle("is-dropping", isOver);
    document.addEventListener("paste", (event) => take(event.clipboardData) && event.preventDefault());
    document.addEventListener("dragover", (event) => (event.preventDefault(), mark(true)));
    document.addEventListener("dragleave", (event) => event.relatedTarget || mark(false));
    document.addEventListener("drop", (event) => (event.preventDefault(), mark(false), take(event.dataTransfer)));
    this.at.picture.addEventListener("change", () => {
      for (const file of this.at.picture.files) this.actions.picture(file);
      this.at.picture.value = "";
    });
  }

  /** @param {State} state @param {{hasMic: boolean, isLive: boolean, canInterrupt: boolean}} can */
  state(state, { hasMic, isLive, canInterrupt }) {
    this.root.dataset.state = state;
    this.status(SENTENCES[state]);
    this.at.start.textContent = START_WORDS[/** @type {"idle"} */ (state)] ?? "End";
    this.at.mute.disabled = !hasMic;
    this.at.camera.disabled = !isLive && this.root.dataset.camera !== "on";
    // Focus would fall to the page if the button it rests on went dead.
    if (!canInterrupt && document.activeElement === this.at.interrupt) this.at.start.focus();
    this.at.interrupt.disabled = !canInterrupt;
  }

  /** @param {string} sentence */
  status(sentence) {
    if (this.at.status.textContent !== sentence) this.at.status.textContent = sentence;
  }

  /**
   * Shows what needs attention until it is resolved; null resolves it.
   * @param {string | null} sentence @param {{retry?: boolean, typing?: boolean, dismiss?: boolean}} [offers]
   */
  alert(sentence, { retry = false, typing = false, dismiss = false } = {}) {
    this.at.error.textContent = sentence ?? "";
    const shown = { retry, "type-instead": typing, dismiss };
    for (const [name, isShown] of Object.entries(shown)) this.at[name].hidden = !isShown;
    this.query(".actions").hidden = !sentence || !(retry || typing || dismiss);
    this.words();
  }

  /** The inks of the line and of both voices, as this theme resolves them. */
  inks() {
    const ink = (/** @type {string} */ selector) => getComputedStyle(this.query(selector)).color;
    return { line: ink(".ink-line"), assistant: ink(".ink-assistant"), user: ink(".ink-user") };
  }

  /** @param {string} size small, medium or large */
  captionsSize(size) {
    this.root.dataset.captions = size;
  }

  /** Gives back what could not be sent. @param {string} text */
  retype(text) {
    this.at["text-input"].value ||= text;
  }

  /** Nothing has been said. */
  forget() {
    this.transcript([]);
    this.clearChips();
    this.captionAssistant("", 0);
    this.captionUser("");
  }

  /** @param {string} text @param {number} spoken characters of it that were heard @param {string} [tail] */
  captionAssistant(text, spoken, tail = "") {
    const caption = this.at["caption-assistant"];
    const ahead = text.slice(spoken, spoken + LONGEST_AHEAD);
    put(caption.children[0], text.slice(0, spoken));
    put(caption.children[1], ahead + tail);
    caption.lang = languageOf(text);
    this.words();
  }

  /** @param {string} text */
  captionUser(text) {
    const caption = this.at["caption-user"];
    put(caption, text.length > LONGEST_USER ? `… ${text.slice(-LONGEST_USER).replace(/^\S*\s/, "")}` : text);
    caption.lang = languageOf(text);
    this.words();
  }

  /** The answer's words turn grey once the next turn has begun. @param {boolean} isPast */
  past(isPast) {
    this.at["caption-assistant"].classList.toggle("is-past", isPast);
  }

  /** @private The invitation gives way to the first words. */
  words() {
    const hasWords = ["caption-assistant", "caption-user", "error"].some((name) => this.at[name].textContent);
    document.body.classList.toggle("has-words", hasWords);
  }

  /** Writes the finished turns, in order; only what changed. @param {Turn[]} turns */
  transcript(turns) {
    const done = turns.filter((turn) => turn.isDone);
    const entries = new Map([...this.log.children].map((entry) => [/** @type {HTMLElement} */ (entry).dataset.id, entry]));
    const wanted = done.map((turn) => {
      const entry = /** @type {HTMLElement} */ (entries.get(turn.id) ?? newEntry(turn));
      const words = /** @type {HTMLElement} */ (entry.querySelector("p"));
      put(words, written({ ...turn, pictures: [] }));
      words.hidden = turn.pictures.length > 0 && !turn.text; // the picture says it
      return entry;
    });
    if (wanted.some((entry, n) => this.log.children[n] !== entry) || this.log.childElementCount !== wanted.length) {
      this.log.replaceChildren(...wanted);
    }
    this.log.lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  toggleTranscript() {
    this.sheet.hidden = !this.sheet.hidden;
    this.at.transcript.setAttribute("aria-expanded", String(!this.sheet.hidden));
    this.at[this.sheet.hidden ? "transcript" : "close-transcript"].focus();
  }

  /** @param {string} id @param {string} uri of the picture; "" takes it away */
  chip(id, uri) {
    if (!uri) return this.chips.querySelector(`[data-id="${id}"]`)?.remove();
    const chip = Object.assign(document.createElement("li"), { innerHTML: `<img alt="Picture to ask about"><button type="button" aria-label="Remove picture">✕</button>` });
    chip.dataset.id = id;
    chip.children[0].setAttribute("src", uri);
    chip.children[1].addEventListener("click", () => (chip.remove(), this.actions.unpicture(id)));
    this.chips.append(chip);
  }

  /** The pictures were asked about. */
  clearChips() {
    this.chips.replaceChildren();
  }

  /** @param {{isMuted: boolean, isHeld: boolean, isPushToTalk: boolean}} mic */
  mic({ isMuted, isHeld, isPushToTalk }) {
    this.root.dataset.mode = isPushToTalk ? "ptt" : "free";
    this.at.mute.setAttribute("aria-pressed", String(isPushToTalk ? isHeld : isMuted));
    this.at.mute.children[1].textContent = isPushToTalk ? (isHeld ? "Release to send" : "Hold to talk") : isMuted ? "Muted" : "Mute";
    this.at.mute.title = isMuted && !isPushToTalk ? "The microphone is open but silent" : "";
  }

  /** @param {boolean} isOn @param {boolean} isMirrored @param {boolean} canFlip */
  camera(isOn, isMirrored, canFlip) {
    this.root.dataset.camera = isOn ? "on" : "off";
    this.query(".camera").hidden = !isOn;
    this.query(".camera").classList.toggle("is-mirrored", isMirrored);
    this.at.flip.hidden = !canFlip;
    this.at.camera.setAttribute("aria-pressed", String(isOn));
  }

  /** @param {string} name of the setting @param {{value: string, label: string}[]} options @param {string} value */
  choices(name, options, value) {
    const select = /** @type {HTMLSelectElement} */ (this.settings.querySelector(`select[name="${name}"]`));
    select.replaceChildren(...options.map(({ value, label }) => new Option(label, value)));
    select.value = options.some((option) => option.value === value) ? value : (options[0]?.value ?? "");
  }

  /** Speech is read out by the page itself, so the log is live only where there is none. @param {boolean} isSpoken */
  spoken(isSpoken) {
    this.query("[role=log]").setAttribute("aria-live", isSpoken ? "off" : "polite");
  }

  /** @param {number} level 0 … 1 */
  level(level) {
    this.at["mic-level"].value = Math.min(1, 2 * Math.sqrt(level)).toFixed(2);
  }

  /** @param {number | null} ms */
  latency(ms) {
    put(this.at.latency, ms === null ? "" : `${Math.round(ms)} ms to first sound`);
  }

  /** @param {Record<string, string> | null} figures null hides them */
  figures(figures) {
    this.at.details.hidden = !figures;
    if (!figures) return;
    this.at.details.replaceChildren(
      ...Object.entries(figures).flatMap(([name, value]) => [make("dt", name), make("dd", value)]),
    );
  }
}

/** @param {HTMLElement} element @param {string} text */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {string} tag @param {string} text */
function make(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

/** @param {Turn} turn */
function newEntry(turn) {
  const entry = document.createElement("li");
  entry.dataset.id = turn.id;
  entry.className = turn.role;
  entry.append(make("b", `${NAMES[turn.role]}, ${clock(turn.at)}`), make("p", ""));
  for (const src of turn.pictures) entry.append(Object.assign(new Image(), { src, alt: "Picture" }));
  const text = /** @type {HTMLElement} */ (entry.children[1]);
  text.lang = languageOf(turn.text);
  text.dir = "auto";
  return entry;
}

/** @param {{name: string, type: string, text: string}} file */
function save({ name, type, text }) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}
