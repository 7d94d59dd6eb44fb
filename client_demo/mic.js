// @ts-check
/** The microphone: PCM16 frames for the server and a level for the eye. */

export const INPUT_RATE = 16000;
export const FRAME_MS = 40;
/** Level above which a frame counts as somebody speaking; only for figures and ducking, the server decides about turns. */
const LOUD = 0.02;

export class Microphone {
  /**
   * @param {AudioContext} context
   * @param {{frame(pcm: ArrayBuffer, level: number): void, ended(): void}} on
   */
  constructor(context, on) {
    this.context = context;
    this.on = on;
    this.level = 0;
    this.muted = false;
    /** When the last loud frame arrived, by `performance.now()`. */
    this.loudAt = 0;
    this.deviceId = "";
    /** @type {MediaStream | null} */
    this.stream = null;
    /** @type {AudioWorkletNode | null} */
    this.node = null;
    /** @type {MediaStreamAudioSourceNode | null} */
    this.source = null;
  }

  get isOpen() {
    return this.stream !== null;
  }

  /** Asks for the microphone; a device that is gone gives way to another. @param {string} deviceId "" for the default */
  async open(deviceId) {
    if (!navigator.mediaDevices) throw new DOMException("needs https", "SecurityError");
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    const stream = await openDevice("audio", wanted, deviceId);
    this.close();
    this.stream = stream;
    const [track] = stream.getAudioTracks();
    this.deviceId = track.getSettings().deviceId ?? "";
    track.onended = () => {
      this.close();
      this.on.ended();
    };
    await this.context.audioWorklet.addModule(new URL("worklets/capture.js", import.meta.url));
    if (this.stream !== stream) return; // closed meanwhile
    this.source = this.context.createMediaStreamSource(stream);
    this.node = new AudioWorkletNode(this.context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit", // an unprocessed microphone may be stereo
      processorOptions: { rate: INPUT_RATE, frame: (INPUT_RATE * FRAME_MS) / 1000 },
    });
    this.node.port.onmessage = ({ data }) => this.receive(data);
    this.source.connect(this.node);
    this.mute(this.muted);
  }

  /** Lets the device go: the browser's recording indicator goes out. */
  close() {
    if (this.node) this.node.port.onmessage = null;
    this.source?.disconnect();
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = this.node = this.source = null;
    this.level = 0;
  }

  /** Frames keep flowing, as silence. @param {boolean} isMuted */
  mute(isMuted) {
    this.muted = isMuted;
    this.node?.port.postMessage({ muted: isMuted });
  }

  /** @private @param {{pcm: ArrayBuffer, level: number}} frame */
  receive({ pcm, level }) {
    this.level = level;
    if (level > LOUD) this.loudAt = performance.now();
    this.on.frame(pcm, level);
  }
}

/**
 * A device that is gone gives way to another. `ideal` says the same in one word, but Chromium 156 then always opens the first.
 * @param {"audio" | "video"} kind @param {MediaTrackConstraints} wanted @param {string} deviceId "" for the default
 */
export async function openDevice(kind, wanted, deviceId) {
  const open = (/** @type {MediaTrackConstraints} */ track) => navigator.mediaDevices.getUserMedia({ [kind]: track });
  if (!deviceId) return open(wanted);
  return open({ ...wanted, deviceId: { exact: deviceId } }).catch((error) => {
    if (error.name !== "OverconstrainedError") throw error;
    return open(wanted);
  });
}

/** The devices a person can choose from; labels are blank until permission. @param {MediaDeviceKind} kind */
export async function devices(kind) {
  const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return all.filter((device) => device.kind === kind && device.deviceId);
}

const REFUSALS = /** @type {Record<string, string>} */ ({
  SecurityError: "Browsers only allow the microphone on https:// or localhost. Open this page over one of those.",
  NotAllowedError: "Microphone access was blocked. Allow it in the address bar, then try again.",
  NotFoundError: "No microphone was found. Plug one in, or continue by typing.",
  NotReadableError: "Another program is using the microphone.",
  OverconstrainedError: "That microphone was disconnected; pick another.",
});

/** Why the microphone did not open, with the remedy. @param {unknown} error */
export function micRefusal(error) {
  return REFUSALS[/** @type {Error} */ (error).name] ?? `The microphone could not be opened (${error}).`;
}
