// What the programs share: their arguments, and how they tell the test what happened.

import { readFileSync } from "node:fs";

export const [, , scene, url, key, soundFile] = process.argv;
export const RATE = 24_000;
const LIMIT_MS = 60_000;

/** Speech, then the silence in which turn detection notices its end; PCM16 at 24 kHz. */
export const turn = readFileSync(soundFile);

export function* pieces(pcm, ms = 100) {
  const size = (2 * RATE * ms) / 1000;
  for (let start = 0; start < pcm.length; start += size) {
    yield pcm.subarray(start, start + size);
  }
}

/** One line of JSON for the test. */
export function tell(kind, members = {}) {
  console.log(JSON.stringify({ kind, ...members }));
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for `event` of an emitter, and for `condition` of its arguments to hold. */
export function once(emitter, event, condition = () => true) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${event}`)), LIMIT_MS);
    const listener = (...what) => {
      if (!condition(...what)) return;
      clearTimeout(timer);
      emitter.off(event, listener);
      resolve(what);
    };
    emitter.on(event, listener);
  });
}
