// @ts-check
/** The assistant's voice: feeds the playback worklet and knows what has been heard. */

export const OUTPUT_RATE = 24000;
const FLUSH_PATIENCE_MS = 150;
// Firefox asks its sound server on the page's own thread, and both can stand still for good (ESR 153, three runs of five).
const CAN_ASK_LATENCY = !navigator.userAgent.includes("Firefox");
const USUAL_LATENCY_MS = 35;

/** @typedef {{item: string, ms: number}} Heard so much of an item that did not play to its end */

export class Player {
  /**
   * @param {AudioContext} context
   * @param {{first(item: string): void, under(): void, drained(item: string, ms: number): void,
   *   played(item: string, ms: number): void}} on
   */
  constructor(context, on) {
    this.context = context;
    this.on = on;
    this.level = 0;
    this.bufferedMs = 0;
    this.epoch = 0;
    /** Items begun and not played out, in order, with the milliseconds the node has read. @type {Map<string, number>} */
    this.open = new Map();
    /** @type {((heard: Heard[]) => void) | null} */
    this.flushing = null;
    /** @type {AudioWorkletNode | null} */
    this.node = null;
  }

  /** Loads the worklet and connects it; once, before anything else. */
  async start() {
    await this.context.audioWorklet.addModule(new URL("worklets/playback.js", import.meta.url));
    this.node = new AudioWorkletNode(this.context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { rate: OUTPUT_RATE },
    });
    this.node.port.onmessage = ({ data }) => this.receive(data);
    this.node.connect(this.context.destination);
  }

  /** Queues PCM16 of an item and takes the buffer away. @param {string} item @param {ArrayBuffer} pcm */
  play(item, pcm) {
    if (this.flushing) return; // of the turn that is being cut off
    if (!this.open.has(item)) this.open.set(item, 0);
    this.post({ type: "pcm", item, pcm }, [pcm]);
  }

  /** Declares that nothing more of the item will come. @param {string} item */
  end(item) {
    if (this.open.has(item)) this.post({ type: "end", item });
  }

  get isBusy() {
    return this.open.size > 0;
  }

  /** Turns down while somebody may be speaking over it; costs nothing if nobody was. @param {boolean} isOn */
  duck(isOn) {
    this.post({ type: "gain", gain: isOn ? 0.33 : 1 });
  }

  /** Falls silent within 10 ms. @returns {Promise<Heard[]>} what was cut off, and where the listener stopped hearing it */
  flush() {
    if (!this.open.size) return Promise.resolve([]);
    this.epoch++;
    this.level = this.bufferedMs = 0;
    this.post({ type: "flush" });
    return new Promise((resolve) => {
      const answer = (/** @type {Heard[]} */ heard) => {
        if (this.flushing !== answer) return;
        this.flushing = null;
        this.open.clear();
        resolve(heard);
      };
      this.flushing = answer;
      // A suspended context answers nothing; its last report is then the truth.
      setTimeout(() => answer(this.unfinished()), FLUSH_PATIENCE_MS);
    });
  }

  /** Sound still on its way from the node to the ear. */
  get latencyMs() {
    if (!CAN_ASK_LATENCY) return USUAL_LATENCY_MS;
    return 1000 * (this.context.outputLatency || this.context.baseLatency || 0);
  }

  /** @param {string} deviceId */
  async setSpeaker(deviceId) {
    const context = /** @type {any} */ (this.context);
    if (context.setSinkId) await context.setSinkId(deviceId);
  }

  /** @private @param {object} message @param {Transferable[]} [transfer] */
  post(message, transfer = []) {
    this.node?.port.postMessage({ epoch: this.epoch, ...message }, transfer);
  }

  /** @private @param {number} ms */
  heard(ms) {
    return Math.max(0, Math.round(ms - this.latencyMs));
  }

  /** Where the listener is in what has not played to its end. @returns {Heard[]} */
  unfinished() {
    return [...this.open].map(([item, ms]) => ({ item, ms: this.heard(ms) }));
  }

  /** @private @param {any} message */
  receive(message) {
    if (message.epoch !== this.epoch) return; // of a turn that was cut off
    const ms = (message.samples / OUTPUT_RATE) * 1000;
    if (message.type === "flushed") {
      if (message.item && this.open.has(message.item)) this.open.set(message.item, ms);
      this.flushing?.(this.unfinished());
    } else if (message.type === "first") {
      this.on.first(message.item);
    } else if (message.type === "under") {
      this.on.under();
    } else if (message.type === "played") {
      this.level = message.level;
      this.bufferedMs = (message.queued / OUTPUT_RATE) * 1000;
      this.open.set(message.item, ms);
      this.on.played(message.item, this.heard(ms));
    } else if (message.type === "drained") {
      this.open.delete(message.item);
      if (!this.open.size) this.level = this.bufferedMs = 0;
      this.on.drained(message.item, ms);
    }
  }
}
