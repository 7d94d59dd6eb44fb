// @ts-check
/**
 * The waterline: one horizontal line that the assistant's voice lifts and yours presses down.
 *
 * What a voice does now stands in the middle and travels outwards as it ages, so the line remembers the last seconds.
 * It knows two levels and a state word.
 */

const LAYERS = 6;
const SMOOTHING = 0.2;
const SILENCE = 0.003; // of a level: below it the line is one clean line
const FLAT = 0.02; // of a height, 0 … 1
const GAIN = 2;
const MEMORY = 150; // frames until a sound has reached the edge
const KEPT = 0.996; // of a height, from one frame to the next
const SMEAR = 5; // frames to each side that one point of the line blends
const BREATH_MS = 3200;
const STILL_MS = 250; // under reduced motion: how often two bars may change

/** @typedef {{assistant: number, user: number}} Levels */

export class Waterline {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{ink(): Record<"line" | "assistant" | "user", string>, levels(): Levels, state(): string}} read
   */
  constructor(canvas, read) {
    this.canvas = canvas;
    this.read = read;
    this.pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.now = { assistant: 0, user: 0 };
    this.past = { assistant: new Float32Array(MEMORY), user: new Float32Array(MEMORY) };
    this.width = this.height = 0;
    /** The state that was drawn without any arcs; null: something moves. @type {string | null} */
    this.picture = null;
    this.ink = read.ink();
    new ResizeObserver(() => this.measure()).observe(canvas);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.measure());
    }
    document.addEventListener("visibilitychange", () => this.run());
    this.calm.addEventListener("change", () => this.run());
    this.measure();
    this.run();
  }

  /** Falls flat at once: an interruption. */
  flatten() {
    this.now = { assistant: 0, user: 0 };
    this.past.assistant.fill(0);
    this.past.user.fill(0);
    this.draw(performance.now());
  }

  /** A drop falls: the conversation has begun. */
  ripple() {
    if (!this.calm.matches) this.now.assistant = 0.6;
  }

  /** @private */
  measure() {
    const scale = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.pen.setTransform(scale, 0, 0, scale, 0, 0);
    this.ink = this.read.ink();
    this.draw(performance.now());
  }

  /** @private Animation frames while visible; a slow timer where motion is unwanted. */
  run() {
    const round = (this.round = {}); // an older loop notices that it was replaced
    const again = (/** @type {number} */ time) => {
      if (this.round !== round || document.hidden) return;
      this.advance();
      const picture = this.isMoving() ? null : this.read.state();
      if (!picture || picture !== this.picture) this.draw(time);
      this.picture = picture;
      if (this.calm.matches) setTimeout(() => again(performance.now()), STILL_MS);
      else requestAnimationFrame(again);
    };
    again(performance.now());
  }

  /** @private Whether the next picture differs from this one; a still line costs nothing. */
  isMoving() {
    const isHigh = (/** @type {number} */ height) => height > FLAT;
    return this.read.state() === "thinking" || this.now.assistant > FLAT || this.past.assistant.some(isHigh) || this.past.user.some(isHigh);
  }

  /** @private */
  advance() {
    const levels = this.read.levels();
    for (const who of /** @type {const} */ (["assistant", "user"])) {
      const level = Math.sqrt(Math.max(0, levels[who] - SILENCE)); // speech hardly moves a linear one
      const smoothing = this.calm.matches ? 1 : SMOOTHING;
      this.now[who] += (Math.min(1, GAIN * level) - this.now[who]) * smoothing;
      travel(this.past[who], this.now[who]);
    }
  }

  /** @private @param {number} time */
  draw(time) {
    const { pen, width, height } = this;
    const state = this.read.state();
    pen.clearRect(0, 0, width, height);
    this.drawLine(state, time);
    for (const [who, side] of /** @type {const} */ ([["assistant", -1], ["user", 1]])) {
      pen.strokeStyle = pen.fillStyle = this.ink[who];
      if (this.calm.matches) this.drawBar(this.now[who], side);
      else if (this.past[who].some((level) => level > FLAT)) this.drawArcs(this.past[who], side, time);
    }
    pen.globalAlpha = 1;
  }

  /** @private @param {string} state @param {number} time */
  drawLine(state, time) {
    const { pen, width, height } = this;
    const breath = this.calm.matches ? 1 : 0.5 + 0.5 * Math.cos((2 * Math.PI * time) / BREATH_MS);
    const isThinking = state === "thinking";
    pen.globalAlpha = isThinking ? 0.3 + 0.7 * breath : 1;
    pen.strokeStyle = isThinking ? this.ink.assistant : this.ink.line;
    pen.lineWidth = isThinking ? 1.25 + breath : 1.25;
    pen.setLineDash(state === "reconnecting" || state === "error" ? [12, 9] : []);
    pen.beginPath();
    pen.moveTo(0, height / 2);
    pen.lineTo(width, height / 2);
    pen.stroke();
    pen.setLineDash([]);
  }

  /** @private Layered arcs between nodes that drift slowly. @param {Float32Array} past @param {number} side @param {number} time */
  drawArcs(past, side, time) {
    const { pen, width, height } = this;
    const middle = width / 2;
    const span = Math.max(150, Math.min(280, width / 5));
    const drift = time / 5200;
    const oldest = past.findLastIndex((level) => level > FLAT);
    const reach = middle * Math.min(1, (oldest + 1 + SMEAR) / MEMORY); // the rest of the line stays clean
    const heights = past.map((_, age) => blend(past, age));
    for (let layer = LAYERS - 1; layer >= 0; layer--) {
      const tall = (height / 2 - 2) * (1 - layer / (LAYERS + 0.5));
      pen.globalAlpha = 1 - layer * 0.15;
      pen.lineWidth = layer ? 1 : 1.7;
      pen.beginPath();
      for (let x = middle - reach; x <= middle + reach; x += 3) {
        const away = (x - middle) / (width / 2); // −1 … 1
        const age = Math.abs(away) * (MEMORY - 1);
        const older = heights[Math.min(MEMORY - 1, (age | 0) + 1)] ?? 0;
        const level = heights[age | 0] + (older - heights[age | 0]) * (age % 1);
        const shore = Math.cos((Math.PI / 2) * away) ** 0.9; // flat at both edges
        const bend = 0.35 * Math.sin(2.1 * away + drift * 1.7 + layer * 0.08);
        const arc = Math.abs(Math.sin(Math.PI * ((x - middle) / span + bend + 0.5) + layer * 0.09 * side));
        pen.lineTo(x, height / 2 + side * tall * level * shore * arc);
      }
      pen.stroke();
    }
  }

  /** @private @param {number} level @param {number} side */
  drawBar(level, side) {
    const { pen, width, height } = this;
    if (level < FLAT) return;
    const long = level * Math.min(width * 0.8, 752);
    pen.fillRect((width - long) / 2, height / 2 + (side < 0 ? -14 : 6), long, 8);
  }
}

/** Moves what was heard one step outwards, softening it as it goes. @param {Float32Array} past @param {number} now */
function travel(past, now) {
  past.copyWithin(1, 0);
  past[0] = now;
  let younger = now;
  for (let k = 1; k < past.length - 1; k++) {
    const here = past[k];
    past[k] = KEPT * (0.12 * younger + 0.76 * here + 0.12 * past[k + 1]);
    younger = here;
  }
}

/** The height at an age, blended with its neighbours; the middle mirrors itself. @param {Float32Array} past @param {number} age */
function blend(past, age) {
  let sum = 0;
  for (let k = age - SMEAR; k <= age + SMEAR; k++) sum += past[Math.min(Math.abs(k), past.length - 1)];
  return sum / (2 * SMEAR + 1);
}
