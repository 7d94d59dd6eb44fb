// The realtime clients of the `openai` npm package: today's and yesterday's, with a header and as in a browser.

import OpenAI from "openai";
import { key, pieces, scene, tell, turn, url } from "./common.mjs";

const modules = {
  ws: ["openai/realtime/ws", "OpenAIRealtimeWS"],
  websocket: ["openai/realtime/websocket", "OpenAIRealtimeWebSocket"],
  "beta-ws": ["openai/beta/realtime/ws", "OpenAIRealtimeWS"],
  "beta-websocket": ["openai/beta/realtime/websocket", "OpenAIRealtimeWebSocket"],
};
const [path, name] = modules[scene];
const { [name]: Realtime } = await import(path);
const client = new OpenAI({ apiKey: key, baseURL: url, dangerouslyAllowBrowser: true });
const realtime = new Realtime({ model: "qwen2.5-omni", dangerouslyAllowBrowser: true }, client);

let numSoundBytes = 0;
realtime.on("error", (error) => tell("error", { text: String(error) }));
realtime.on("event", (event) => {
  tell("event", { type: event.type });
  if (event.type.endsWith("audio.delta")) numSoundBytes += Buffer.from(event.delta, "base64").length;
});
realtime.on("session.created", () => {
  for (const piece of pieces(turn)) {
    realtime.send({ type: "input_audio_buffer.append", audio: Buffer.from(piece).toString("base64") });
  }
});
realtime.on("response.done", ({ response }) => {
  tell("done", { response, numSoundBytes });
  realtime.close();
});
