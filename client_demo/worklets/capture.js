// @ts-check
/** Microphone samples in, fixed PCM16 frames with their level out. */
import { Resampler } from "./resample.js";

const scope = /** @type {any} */ (globalThis);

class Capture extends scope.AudioWorkletProcessor {
  /** @param {{processorOptions: {rate: number, frame: number}}} options */
  constructor({ processorOptions: { rate, frame } }) {
    super();
    this.resampler = new Resampler(Math.round(scope.sampleRate), rate);
    this.size = frame;
    this.muted = false;
    this.frame = new Int16Array(frame);
    this.filled = 0;
    this.energy = 0;
    this.port.onmessage = (/** @type {MessageEvent} */ { data }) => (this.muted = data.muted);
  }

  /** @param {Float32Array[][]} inputs */
  process([[samples]]) {
    // An empty input means that the device is opening or has died: no data, which is not silence.
    if (!samples) return true;
    for (let i = 0; i < samples.length; i++) {
      // A muted microphone sends zeros: the server's input clock is the count of samples and must go on.
      this.resampler.push(this.muted ? 0 : samples[i]);
      while (this.resampler.ready) this.write(this.resampler.pull());
    }
    return true;
  }

  /** @param {number} sample */
  write(sample) {
    const clamped = Math.max(-1, Math.min(1, sample)); // gain control reaches full scale
    this.energy += clamped * clamped;
    this.frame[this.filled++] = Math.round(clamped * 32767);
    if (this.filled < this.size) return;
    const level = Math.sqrt(this.energy / this.size);
    this.port.postMessage({ pcm: this.frame.buffer, level }, [this.frame.buffer]);
    this.frame = new Int16Array(this.size);
    this.filled = this.energy = 0;
  }
}

scope.registerProcessor("capture", Capture);
