// Ask one spoken question: node docs/examples/client.mjs question.wav [ws://127.0.0.1:8000/v1/realtime] [reply.wav]
// Node 22 or newer (20: --experimental-websocket), no packages. The WAV is 16 bit mono. A key goes into PARLEY_KEY.
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const [question, url = "ws://127.0.0.1:8000/v1/realtime", reply = "reply.wav"] = process.argv.slice(2);

/** Samples and rate of a WAV file. */
function readWav(file) {
  const bytes = readFileSync(file);
  let [rate, at] = [0, 12];
  while (at < bytes.length) {
    const [name, size] = [bytes.toString("latin1", at, at + 4), bytes.readUInt32LE(at + 4)];
    if (name === "fmt ") rate = bytes.readUInt32LE(at + 12);
    if (name === "data") return { rate, pcm: bytes.subarray(at + 8, at + 8 + size) };
    at += 8 + size + (size % 2);
  }
  throw new Error(`${file} is no WAV file`);
}

/** A WAV file of 24 kHz mono. */
function wav(pcm) {
  const head = Buffer.alloc(44);
  head.write("RIFF\0\0\0\0WAVEfmt ", "latin1");
  head.writeUInt32LE(36 + pcm.length, 4);
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, 24000, 4], [28, 48000, 4], [32, 2, 2], [34, 16, 2]].forEach(
    ([at, value, size]) => head.writeUIntLE(value, at, size),
  );
  head.write("data", 36);
  head.writeUInt32LE(pcm.length, 40);
  return Buffer.concat([head, pcm]);
}

const { rate, pcm } = readWav(question);
const key = process.env.PARLEY_KEY;
const socket = new WebSocket(url, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
const sound = [];
const send = (event) => socket.send(JSON.stringify(event));

socket.onopen = async () => {
  const input = { format: { type: "audio/pcm", rate } };
  send({ type: "session.update", session: { type: "realtime", audio: { input } } });
  const spoken = Buffer.concat([pcm, Buffer.alloc(3 * rate)]); // 1.5 s of silence end the turn
  for (let at = 0; at < spoken.length && socket.readyState === 1; at += rate / 5) {
    send({ type: "input_audio_buffer.append", audio: spoken.toString("base64", at, at + rate / 5) });
    await sleep(100); // as a microphone would
  }
};
socket.onmessage = ({ data }) => {
  const event = JSON.parse(data);
  if (event.type === "response.output_audio_transcript.delta") process.stdout.write(event.delta);
  if (event.type === "response.output_audio.delta") sound.push(Buffer.from(event.delta, "base64"));
  if (event.type === "error") console.error(`error: ${event.error.message}`);
  if (event.type === "response.done") {
    console.log(`\n[${event.response.status}]`);
    writeFileSync(reply, wav(Buffer.concat(sound)));
    socket.close();
  }
};
