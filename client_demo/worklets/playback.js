// @ts-check
/**
 * The jitter buffer: packets of one item after another in, sound out.
 *
 *   packets ─▶ queue ─▶ resampler ─▶ gain ─▶ speakers
 *
 * Each message carries an epoch; a flush raises it, so packets of the old turn that were under way are recognised and
 * dropped. An item needs an explicit end: otherwise its last sample would count as an underrun and an item shorter than
 * the prebuffer would never play.
 */
import { Resampler } from "./resample.js";

const scope = /** @type {any} */ (globalThis);
const PREBUFFER_MS = 120;
const PREBUFFER_STEP_MS = 20;
const PREBUFFER_MOST_MS = 240;
const FADE_MS = 10;
const REPORT_MS = 30;

/** @typedef {{item: string, samples: Int16Array | null, at: number}} Packet null samples: the end of the item */

class Playback extends scope.AudioWorkletProcessor {
  /** @param {{processorOptions: {rate: number}}} options */
  constructor({ processorOptions: { rate } }) {
    super();
    this.perMs = rate / 1000;
    this.contextPerMs = scope.sampleRate / 1000;
    this.resampler = new Resampler(rate, Math.round(scope.sampleRate));
    this.prebuffer = PREBUFFER_MS * this.perMs;
    this.epoch = 0;
    this.ramp = 1 - Math.exp(-1 / (5 * this.contextPerMs)); // 5 ms: quick, and no click
    /** @type {Packet[]} */
    this.queue = [];
    this.queued = 0;
    this.sealed = 0; // ends in the queue
    this.isPlaying = false;
    this.item = "";
    this.heard = 0; // samples of the item
    this.last = 0;
    this.gain = this.wanted = 1;
    this.fade = -1; // outputs left of a flush's fade; -1: none
    this.energy = this.counted = 0;
    this.port.onmessage = (/** @type {MessageEvent} */ { data }) => this.receive(data);
  }

  reset() {
    this.queue = [];
    this.queued = this.sealed = this.heard = this.last = this.energy = this.counted = 0;
    this.isPlaying = false;
    this.item = "";
    this.gain = this.wanted = 1;
    this.fade = -1;
  }

  /** @param {any} message */
  receive(message) {
    if (message.type === "gain") this.wanted = message.gain;
    if (message.type === "flush") this.flush(message.epoch);
    if (message.epoch !== this.epoch || this.fade >= 0) return;
    if (message.type === "pcm") {
      this.queue.push({ item: message.item, samples: new Int16Array(message.pcm), at: 0 });
      this.queued += message.pcm.byteLength / 2;
    }
    if (message.type === "end") {
      this.queue.push({ item: message.item, samples: null, at: 0 });
      this.sealed++;
    }
  }

  /** @param {number} epoch */
  flush(epoch) {
    this.epoch = epoch;
    if (this.isPlaying) this.fade = Math.round(FADE_MS * this.contextPerMs);
    else this.flushed();
  }

  flushed() {
    this.port.postMessage({ type: "flushed", epoch: this.epoch, item: this.item, samples: this.heard });
    this.reset();
  }

  /** @param {unknown} _inputs @param {Float32Array[][]} outputs */
  process(_inputs, [channels]) {
    const out = channels[0];
    if (!this.isPlaying && (this.queued >= this.prebuffer || this.sealed)) this.isPlaying = true;
    for (let i = 0; i < out.length; i++) out[i] = this.sample();
    for (let c = 1; c < channels.length; c++) channels[c].set(out);
    if (this.isPlaying && this.fade < 0 && this.counted >= REPORT_MS * this.contextPerMs) this.report();
    return true;
  }

  sample() {
    while (!this.resampler.ready) this.resampler.push(this.next());
    this.gain += (this.wanted - this.gain) * this.ramp;
    let y = this.resampler.pull() * this.gain;
    if (this.fade >= 0) {
      y *= this.fade / (FADE_MS * this.contextPerMs);
      if (this.fade-- === 0) this.flushed();
    }
    this.energy += y * y;
    this.counted++;
    return y;
  }

  /** The next sample of the queue; dies away where there is none, because a step would click. */
  next() {
    while (this.isPlaying) {
      const packet = this.queue[0];
      if (!packet) this.underrun();
      else if (!packet.samples) this.drained();
      else if (packet.at === packet.samples.length) this.queue.shift();
      else return (this.last = this.read(packet, packet.samples));
    }
    return (this.last *= 0.97);
  }

  /** @param {Packet} packet @param {Int16Array} samples */
  read(packet, samples) {
    if (packet.item !== this.item) {
      this.item = packet.item;
      this.heard = 0;
      this.port.postMessage({ type: "first", epoch: this.epoch, item: this.item });
    }
    this.heard++;
    this.queued--;
    return samples[packet.at++] / 32768;
  }

  underrun() {
    this.isPlaying = false;
    if (this.fade >= 0) return;
    this.prebuffer = Math.min(this.prebuffer + PREBUFFER_STEP_MS * this.perMs, PREBUFFER_MOST_MS * this.perMs);
    this.port.postMessage({ type: "under", epoch: this.epoch, item: this.item });
  }

  drained() {
    const { item } = /** @type {Packet} */ (this.queue.shift());
    this.sealed--;
    this.isPlaying = this.sealed > 0 || this.queued >= this.prebuffer;
    const samples = item === this.item ? this.heard : 0;
    this.port.postMessage({ type: "drained", epoch: this.epoch, item, samples });
  }

  report() {
    const level = Math.sqrt(this.energy / this.counted);
    this.energy = this.counted = 0;
    const { epoch, item, heard: samples, queued } = this;
    this.port.postMessage({ type: "played", epoch, item, samples, queued, level });
  }
}

scope.registerProcessor("playback", Playback);
