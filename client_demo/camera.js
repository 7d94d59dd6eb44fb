// @ts-check
/** The camera: a preview, JPEG frames twice a second or recorder clips, and pictures that a person drops. */
import { openDevice } from "./mic.js";

const FRAME_EVERY_MS = 500;
const FRAME_SIDE = 640;
const PICTURE_SIDE = 1024;
const CLIP_MS = 2000;
const CLIP_TYPES = ["video/webm;codecs=vp8", "video/webm"];

export class Camera {
  /**
   * @param {HTMLVideoElement} preview
   * @param {{frame(jpeg: ArrayBuffer): void, clip(data: ArrayBuffer, header: object): void, ended(): void}} on
   */
  constructor(preview, on) {
    this.preview = preview;
    this.on = on;
    this.deviceId = "";
    this.facing = "user";
    /** @type {MediaStream | null} */
    this.stream = null;
    /** @type {MediaRecorder | null} */
    this.recorder = null;
    this.timer = 0;
    this.takenAt = 0;
    this.isTaking = false;
    this.numStreams = 0;
  }

  get isOpen() {
    return this.stream !== null;
  }

  /** Whether the preview should be mirrored, as a person expects to see themselves; what is sent never is. */
  get isMirrored() {
    return this.facing !== "environment";
  }

  /**
   * @param {{deviceId?: string, facing?: string, clips?: boolean}} wanted clips: two-second recordings instead of pictures
   */
  async open({ deviceId = "", facing = "user", clips = false }) {
    if (!navigator.mediaDevices) throw new DOMException("needs https", "SecurityError");
    const wanted = {
      width: { ideal: 640 },
      height: { ideal: 480 },
      frameRate: { ideal: 15 },
      ...(!deviceId && { facingMode: { ideal: facing } }),
    };
    const stream = await openDevice("video", wanted, deviceId);
    this.close();
    this.stream = stream;
    const [track] = stream.getVideoTracks();
    const settings = track.getSettings();
    this.deviceId = settings.deviceId ?? "";
    this.facing = settings.facingMode ?? facing;
    track.onended = () => {
      this.close();
      this.on.ended();
    };
    this.preview.srcObject = stream;
    this.preview.play().catch(() => {}); // closed before it began
    if (clips && recorderType()) this.record(stream);
    // A timer, not an animation frame: those stop in a hidden tab, where a timer is only slowed down.
    else this.timer = setInterval(() => this.pulse(), FRAME_EVERY_MS / 5);
  }

  /** @param {MediaDeviceInfo[]} cameras those that exist */
  async flip(cameras, clips = false) {
    const at = cameras.findIndex(({ deviceId }) => deviceId === this.deviceId);
    const facing = this.facing === "environment" ? "user" : "environment";
    await this.open({ deviceId: cameras[(at + 1) % cameras.length]?.deviceId, facing, clips });
  }

  /** Lets the device go: its light goes out. */
  close() {
    clearInterval(this.timer);
    this.timer = 0;
    if (this.recorder?.state === "recording") this.recorder.stop();
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = this.recorder = this.preview.srcObject = null;
  }

  /** Sends a frame if one is due. The microphone's frames call this too: nothing slows those down. */
  pulse() {
    if (this.timer && performance.now() - this.takenAt >= FRAME_EVERY_MS) this.take();
  }

  /** Sends one frame now; a slow encoder skips, it never queues. */
  async take() {
    if (this.isTaking) return;
    this.takenAt = performance.now();
    const jpeg = await this.snapshot();
    if (jpeg && this.stream) this.on.frame(await jpeg.arrayBuffer());
  }

  /** @returns {Promise<Blob | null>} what the camera sees; null before its first picture */
  async snapshot() {
    if (!this.preview.videoWidth) return null;
    this.isTaking = true;
    const { videoWidth, videoHeight } = this.preview;
    const jpeg = await toJpeg(this.preview, videoWidth, videoHeight, FRAME_SIDE, 0.7).catch(() => null);
    this.isTaking = false;
    return jpeg;
  }

  /** Begins a new stream of clips: a new session has not seen the header of the old one. */
  restartClips() {
    if (this.recorder?.state !== "recording" || !this.stream) return;
    this.recorder.stop();
    this.record(this.stream);
  }

  /** @private @param {MediaStream} stream */
  record(stream) {
    const options = { mimeType: recorderType(), videoBitsPerSecond: 600000, videoKeyFrameIntervalDuration: CLIP_MS };
    const recorder = new MediaRecorder(stream, options);
    const header = { format: "video/webm", stream_id: `camera${++this.numStreams}` };
    let seq = 0;
    // One chain, or the asynchronous reads of two fragments could overtake each other.
    let sent = Promise.resolve();
    recorder.ondataavailable = ({ data }) => {
      const last = recorder.state === "inactive";
      sent = sent.then(async () => this.on.clip(await data.arrayBuffer(), { ...header, seq: seq++, ...(last && { last }) }));
    };
    recorder.start(CLIP_MS);
    this.recorder = recorder;
  }
}

function recorderType() {
  return CLIP_TYPES.find((type) => globalThis.MediaRecorder?.isTypeSupported(type));
}

/** A picture from a file, small enough to send. @param {Blob} file @returns {Promise<Blob>} */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  return toJpeg(bitmap, bitmap.width, bitmap.height, PICTURE_SIDE, 0.85).finally(() => bitmap.close());
}

/** @param {Blob} blob @returns {Promise<string>} */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(/** @type {string} */ (reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * @param {CanvasImageSource} source @param {number} width @param {number} height
 * @param {number} side longest side of the result @param {number} quality
 * @returns {Promise<Blob>}
 */
async function toJpeg(source, width, height, side, quality) {
  const scale = Math.min(1, side / Math.max(width, height));
  const size = /** @type {[number, number]} */ ([Math.round(width * scale), Math.round(height * scale)]);
  if (globalThis.OffscreenCanvas) {
    const canvas = new OffscreenCanvas(...size);
    canvas.getContext("2d")?.drawImage(source, 0, 0, ...size);
    return canvas.convertToBlob({ type: "image/jpeg", quality });
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: size[0], height: size[1] });
  canvas.getContext("2d")?.drawImage(source, 0, 0, ...size);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no JPEG"))), "image/jpeg", quality),
  );
}

const REFUSALS = /** @type {Record<string, string>} */ ({
  SecurityError: "Browsers only allow the camera on https:// or localhost. Open this page over one of those.",
  NotAllowedError: "Camera access was blocked. Allow it in the address bar, then press Camera again.",
  NotFoundError: "No camera was found. You can drop a picture here instead.",
  NotReadableError: "Another program is using the camera.",
  OverconstrainedError: "That camera was disconnected; pick another.",
});

/** Why the camera did not open, with the remedy. @param {unknown} error */
export function cameraRefusal(error) {
  return REFUSALS[/** @type {Error} */ (error).name] ?? `The camera could not be opened (${error}).`;
}
