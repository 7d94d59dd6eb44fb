// @ts-check
/**
 * A streaming windowed-sinc resampler between two whole rates.
 *
 * Browsers differ in how (and whether) they convert rates, so both worklets use this one and the AudioContext keeps the
 * device's rate. Push inputs until `ready`, then pull one output; nothing is allocated after construction.
 */
export class Resampler {
  /**
   * @param {number} from inputs per second
   * @param {number} to outputs per second
   * @param {number} [crossings] zero crossings of the kernel on each side: more is steeper and later
   */
  constructor(from, to, crossings = 16) {
    const divisor = greatestCommonDivisor(from, to);
    const narrow = Math.min(1, to / from);
    const reach = Math.ceil(crossings / narrow);
    /** @private Outputs per input as the fraction up / down; `phase` counts in 1 / up of an input. */
    this.up = to / divisor;
    this.down = from / divisor;
    this.taps = 2 * reach;
    this.kernels = Array.from({ length: this.up }, (_, p) => kernel(reach, p / this.up, 0.94 * narrow));
    // Written twice, `taps` apart, so that the newest `taps` inputs always lie in one piece.
    this.line = new Float32Array(2 * this.taps);
    this.at = 0;
    this.phase = this.up;
  }

  /** Whether an output can be pulled before the next input. */
  get ready() {
    return this.phase < this.up;
  }

  /** @param {number} sample */
  push(sample) {
    this.line[this.at] = this.line[this.at + this.taps] = sample;
    this.at = (this.at + 1) % this.taps;
    this.phase -= this.up;
  }

  /** @returns {number} the next output; only when `ready` */
  pull() {
    const weights = this.kernels[this.phase];
    let sum = 0;
    for (let k = 0; k < this.taps; k++) sum += weights[k] * this.line[this.at + k];
    this.phase += this.down;
    return sum;
  }
}

/**
 * @param {number} reach inputs on each side
 * @param {number} fraction of an input by which the output lies after the middle
 * @param {number} cutoff in half input rates
 */
function kernel(reach, fraction, cutoff) {
  const weights = new Float32Array(2 * reach);
  let sum = 0;
  for (let k = 0; k < weights.length; k++) {
    const x = k - (reach - 1) - fraction;
    const window = kaiser(Math.max(0, 1 - (x / reach) ** 2));
    weights[k] = window * (x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x));
    sum += weights[k];
  }
  return weights.map((weight) => weight / sum); // no ripple on a constant
}

/** Kaiser window, β = 8, of 1 − (x / reach)²: the first terms of a Bessel series. @param {number} squared */
function kaiser(squared) {
  let term = 1;
  let sum = 1;
  for (let n = 1; n < 24; n++) {
    term *= (squared * 16) / (n * n);
    sum += term;
  }
  return sum;
}

/** @param {number} a @param {number} b @returns {number} */
function greatestCommonDivisor(a, b) {
  return b ? greatestCommonDivisor(b, a % b) : a;
}
