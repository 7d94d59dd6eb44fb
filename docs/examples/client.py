"""Ask one spoken question: python docs/examples/client.py question.wav [ws://127.0.0.1:8000/v1/realtime] [reply.wav]

The WAV is 16 bit mono of any rate the server takes (16000 and 24000 among them). A key goes into PARLEY_KEY.
"""

import asyncio
import base64
import json
import os
import sys
import wave

from websockets.asyncio.client import connect

QUESTION = sys.argv[1]
URL = sys.argv[2] if len(sys.argv) > 2 else "ws://127.0.0.1:8000/v1/realtime"
REPLY = sys.argv[3] if len(sys.argv) > 3 else "reply.wav"


async def say(socket, pcm: bytes, rate: int) -> None:
    """Send the question as a microphone would: 100 ms at a time, then a silence, by which the server ends the turn."""
    size = rate // 10 * 2
    for start in range(0, len(pcm) + 15 * size, size):
        piece = pcm[start : start + size].ljust(size, b"\0")
        event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()}
        await socket.send(json.dumps(event))
        await asyncio.sleep(0.1)


async def main() -> None:
    with wave.open(QUESTION, "rb") as file:
        pcm, rate = file.readframes(file.getnframes()), file.getframerate()
    key = os.environ.get("PARLEY_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with connect(URL, additional_headers=headers) as socket:
        heard_as = {"format": {"type": "audio/pcm", "rate": rate}}
        session = {"type": "realtime", "audio": {"input": heard_as}}
        await socket.send(json.dumps({"type": "session.update", "session": session}))
        speaking = asyncio.create_task(say(socket, pcm, rate))
        with wave.open(REPLY, "wb") as reply:
            reply.setparams((1, 2, 24000, 0, "NONE", ""))
            async for message in socket:
                event = json.loads(message)
                match event["type"]:
                    case "response.output_audio_transcript.delta":
                        print(event["delta"], end="", flush=True)
                    case "response.output_audio.delta":
                        reply.writeframes(base64.b64decode(event["delta"]))
                    case "response.done":
                        print(f"\n[{event['response']['status']}]")
                        break
                    case "error":
                        print(f"\nerror: {event['error']['message']}", file=sys.stderr)
        speaking.cancel()


asyncio.run(main())
