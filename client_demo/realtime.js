// @ts-check
/**
 * The protocol: one WebSocket that comes back by itself, events as JSON, media as binary messages. No DOM.
 *
 *   open ─▶ session.created ─▶ session.update ─▶ session.updated ─▶ history replayed ─▶ ready
 *
 * The server has no resume yet, so a new connection is a new session and `replay` says again what was said. Resuming a
 * session would replace that one call.
 */

const RETRY_FIRST_MS = 500;
const RETRY_MOST_MS = 5000;
const RETRY_JITTER = 0.3;
export const RETRIES = 8;
const CONNECT_PATIENCE_MS = 10000;

/** @typedef {Record<string, any> & {type: string}} Event */
/** @typedef {{isFinal: boolean, sentence: string}} Verdict */
/**
 * @typedef {object} Handlers
 * @property {(event: Event) => void} event every server event but sound
 * @property {(event: Event, pcm: ArrayBuffer) => void} audio
 * @property {() => void} ready the session is configured and knows the conversation
 * @property {(verdict: Verdict, waitMs: number) => void} lost it will try again
 * @property {(sentence: string) => void} failed it will not
 */

/** One line of JSON, a newline, the bytes. @param {object} header @param {ArrayBuffer} bytes @returns {Uint8Array<ArrayBuffer>} */
export function encodeBinary(header, bytes) {
  const line = new TextEncoder().encode(`${JSON.stringify(header)}\n`);
  const message = new Uint8Array(line.length + bytes.byteLength);
  message.set(line);
  message.set(new Uint8Array(bytes), line.length);
  return message;
}

/** @param {ArrayBuffer} message @returns {{event: Event, bytes: ArrayBuffer}} */
export function decodeBinary(message) {
  const end = new Uint8Array(message).indexOf(10);
  if (end < 0) throw new Error("binary message without header line");
  const event = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 0, end)));
  return { event, bytes: message.slice(end + 1) };
}

/** @param {string} text base64 @returns {ArrayBuffer} */
export function decodeBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}

/** How long to wait before try number `attempt`, counted from 0. @param {number} attempt @param {number} [random] 0 … 1 */
export function backOff(attempt, random = Math.random()) {
  const wait = Math.min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** attempt);
  return Math.round(wait * (1 + RETRY_JITTER * (2 * random - 1)));
}

const FINAL = /** @type {Record<number, string>} */ ({
  1000: "The server ended the conversation.",
  1008: "The server closed the connection",
  1009: "The server refused a message that was too large.",
  3000: "This server wants an access key. Enter it in Settings, then try again.",
  4000: "The server cannot serve this page as it asked",
  4001: "The conversation goes on in another window.",
});
const REASONS = /** @type {Record<string, string>} */ ({
  slow_consumer: "The server closed the connection because this one is too slow.",
  origin_refused: "The server does not accept pages from this address.",
  "invalid_request_error.model_not_found": "The server does not have the model that was asked for.",
});

/** What a close code means for the person. @param {number} code @param {string} reason @returns {Verdict} */
export function judgeClose(code, reason) {
  const sentence = REASONS[reason] ?? FINAL[code];
  if (!(code in FINAL)) return { isFinal: false, sentence: "Connection lost, reconnecting…" };
  const isWhole = sentence.endsWith(".");
  return { isFinal: true, sentence: isWhole ? sentence : `${sentence}${reason ? ` (${reason})` : ""}.` };
}

/**
 * What `/readyz` means for the person; a browser hides the status of a refused upgrade, so the page asks here.
 * @param {number} status 0: no answer @param {any} body
 * @returns {Verdict}
 */
export function judgeReadiness(status, body) {
  const wait = (/** @type {string} */ sentence) => ({ isFinal: false, sentence });
  if (status === 0) return wait("The server is not answering.");
  if (status === 200) return wait("All places are taken; trying again in a moment.");
  if (body?.status === "draining") return wait("The server is restarting.");
  const seconds = Math.ceil(body?.eta_s ?? 0);
  return wait(`The model is still loading${seconds ? ` (about ${seconds} s)` : ""}.`);
}

export class Realtime {
  /**
   * @param {{url: string, readyUrl: string, key: () => string, session: () => object, replay: () => Event[],
   *   on: Handlers}} options session: what `session.update` should say now; replay: events that tell a new session
   *   what was said
   */
  constructor({ url, readyUrl, key, session, replay, on }) {
    this.options = { url, readyUrl, key, session, replay };
    this.on = on;
    /** @type {WebSocket | null} */
    this.socket = null;
    this.isReady = false;
    this.attempt = 0;
    this.timer = 0;
    this.patience = 0;
  }

  /** Bytes that the network has not taken yet. */
  get backlog() {
    return this.socket?.bufferedAmount ?? 0;
  }

  open() {
    this.close();
    this.attempt = 0;
    this.dial();
  }

  /** Ends the connection and every attempt to get it back. */
  close() {
    clearTimeout(this.timer);
    clearTimeout(this.patience);
    const socket = this.socket;
    this.socket = null;
    this.isReady = false;
    socket?.close(1000);
  }

  /** Sends an event if there is a session to hear it. @param {Event} event */
  send(event) {
    if (this.isReady) this.socket?.send(JSON.stringify(event));
  }

  /** Sends media as a binary message; lost while disconnected, never queued. @param {Event} header @param {ArrayBuffer} bytes */
  sendBytes(header, bytes) {
    if (this.isReady) this.socket?.send(encodeBinary(header, bytes));
  }

  /** Tells the session what the settings are now. */
  update() {
    this.send({ type: "session.update", session: this.options.session() });
  }

  /** @private */
  dial() {
    const key = this.options.key();
    const protocols = ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])];
    const socket = new WebSocket(this.options.url, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.isReady = false;
    // A proxy that accepts and says nothing is a failed connection too.
    this.patience = setTimeout(() => socket.close(), CONNECT_PATIENCE_MS);
    socket.onmessage = ({ data }) => socket === this.socket && this.receive(data);
    socket.onclose = ({ code, reason }) => socket === this.socket && this.lose(code, reason);
  }

  /** @private @param {string | ArrayBuffer} message */
  receive(message) {
    if (typeof message !== "string") {
      const { event, bytes } = decodeBinary(message);
      return this.on.audio(event, bytes);
    }
    const event = /** @type {Event} */ (JSON.parse(message));
    if (event.type === "response.output_audio.delta") return this.on.audio(event, decodeBase64(event.delta));
    if (!this.isReady && event.type === "session.created") {
      this.socket?.send(JSON.stringify({ type: "session.update", session: this.options.session() }));
    }
    if (!this.isReady && event.type === "session.updated") this.begin();
    this.on.event(event);
  }

  /** @private */
  begin() {
    clearTimeout(this.patience);
    this.isReady = true;
    this.attempt = 0;
    for (const event of this.options.replay()) this.send(event);
    this.on.ready();
  }

  /** @private @param {number} code @param {string} reason */
  async lose(code, reason) {
    clearTimeout(this.patience);
    const wasReady = this.isReady;
    const socket = this.socket;
    this.isReady = false;
    let verdict = judgeClose(code, reason);
    if (verdict.isFinal) return this.fail(verdict.sentence);
    let isWaiting = false;
    if (!wasReady) {
      const { status, body } = await readiness(this.options.readyUrl);
      if (socket !== this.socket) return; // closed meanwhile
      verdict = judgeReadiness(status, body);
      isWaiting = status > 0; // a server that loads or is full is worth waiting for
    }
    if (!isWaiting && this.attempt >= RETRIES) return this.fail("The server is not answering.");
    const waitMs = backOff(this.attempt);
    this.attempt = isWaiting ? Math.min(this.attempt + 1, 3) : this.attempt + 1;
    this.timer = setTimeout(() => this.dial(), waitMs);
    this.on.lost(verdict, waitMs);
  }

  /** @private @param {string} sentence */
  fail(sentence) {
    this.close();
    this.on.failed(sentence);
  }
}

/** @param {string} url @returns {Promise<{status: number, body: any}>} */
async function readiness(url) {
  try {
    const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(3000) });
    return { status: answer.status, body: await answer.json().catch(() => null) };
  } catch {
    return { status: 0, body: null };
  }
}
