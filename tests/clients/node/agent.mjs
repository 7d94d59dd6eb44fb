// A voice agent with @openai/agents-realtime over its own WebSocket transport.

import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";
import { key, once, pieces, scene, sleep, tell, turn, url } from "./common.mjs";

const getTime = tool({
  name: "get_time",
  description: "The time at a place",
  parameters: z.object({ place: z.string() }),
  execute: async ({ place }) => {
    tell("tool", { place });
    return "12:00";
  },
});

const agent = new RealtimeAgent({
  name: "Parley",
  instructions: "Be brief.",
  tools: scene === "tool" ? [getTime] : [],
});
const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket() });

let numSoundBytes = 0;
session.on("audio", (event) => (numSoundBytes += event.data.byteLength));
session.on("error", (event) => tell("error", { text: JSON.stringify(event.error?.message ?? event) }));
for (const kind of ["agent_start", "agent_end", "audio_start", "audio_stopped", "audio_interrupted"]) {
  session.on(kind, () => tell(kind));
}
session.on("agent_tool_start", () => tell("agent_tool_start"));
session.on("agent_tool_end", (_context, _agent, _tool, result) => tell("agent_tool_end", { result }));
session.transport.on("*", (event) => tell("event", { type: event.type, event: withoutMedia(event) }));

function withoutMedia(event) {
  return "delta" in event ? undefined : event;
}

const replyDone = (status) =>
  once(session.transport, "*", (e) => e.type === "response.done" && e.response.status === status);
const say = () => {
  for (const piece of pieces(turn)) session.sendAudio(new Uint8Array(piece).buffer);
};

const scenes = {
  async spoken() {
    const written = once(
      session.transport,
      "*",
      (e) => e.type === "conversation.item.input_audio_transcription.completed",
    );
    const done = replyDone("completed");
    say();
    await Promise.all([done, written]);
    await sleep(300); // it retrieves what was written down
  },
  async interrupted() {
    const cancelled = replyDone("cancelled");
    const second = replyDone("completed");
    session.sendMessage("Please count.");
    while (numSoundBytes < 2 * 24_000) await once(session, "audio");
    await sleep(1200); // the agent goes by the clock, as if it had been played
    say();
    await Promise.all([cancelled, second]);
    await sleep(300);
  },
  async tool() {
    const called = replyDone("completed");
    say();
    await called;
    await replyDone("completed");
    await sleep(100);
  },
};

await session.connect({ apiKey: key, url });
await scenes[scene]();
tell("history", { history: session.history, numSoundBytes });
session.close();
