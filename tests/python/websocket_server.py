"""A server of WebSocket by the library `websockets`: an echo, and scripted sockets of OpenAI: the Realtime
API, and that of the Responses API.

Usage: websocket_server.py PORT [CERTIFICATE KEY]
"""

import asyncio
import json
import ssl
import sys
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import serve


async def realtime(socket):
    """One response for each `response.create`, as `gpt-realtime` sends it."""
    model = parse_qs(urlsplit(socket.request.path).query)["model"][0]
    await socket.send(json.dumps({
        "type": "session.created", "event_id": "e1",
        "session": {"type": "realtime", "id": "s1", "model": model,
                    "instructions": socket.request.headers.get("authorization", "")},
    }))
    async for message in socket:
        if json.loads(message)["type"] != "response.create":
            continue
        for word in ["Hello", " there"]:
            await socket.send(json.dumps({
                "type": "response.output_text.delta", "event_id": "e2", "response_id": "r1", "item_id": "i1",
                "output_index": 0, "content_index": 0, "delta": word,
            }))
        await socket.send(json.dumps({
            "type": "response.done", "event_id": "e3",
            "response": {"id": "r1", "object": "realtime.response", "status": "completed",
                         "usage": {"total_tokens": 12, "input_tokens": 10, "output_tokens": 2}},
        }))


async def responses(socket):
    """One response for each `response.create`, as the socket of the Responses API sends it."""
    async for message in socket:
        asked = json.loads(message)
        assert asked["type"] == "response.create", asked
        number = 0

        async def say(kind, **more):
            nonlocal number
            await socket.send(json.dumps({"type": kind, "sequence_number": number, **more}))
            number += 1

        answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": asked["model"], "output": [],
                  "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        await say("response.created", response={**answer, "status": "in_progress", "usage": None})
        for word in ["Hello", " there"]:
            await say("response.output_text.delta", item_id="m", output_index=0, content_index=0, delta=word, logprobs=[])
        usage = {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2,
                 "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12}
        await say("response.completed", response={**answer, "status": "completed", "usage": usage})


async def handle(socket):
    path = urlsplit(socket.request.path).path
    if path == "/v1/realtime":
        return await realtime(socket)
    if path == "/v1/responses":
        return await responses(socket)
    async for message in socket:
        if message == "close":
            return await socket.close(4001, "as you wish")
        await socket.send(message)


def pick(_, offered):
    return "chat" if "chat" in offered else None


async def main():
    port, *pair = sys.argv[1:]
    context = None
    if pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
    async with serve(handle, "127.0.0.1", int(port), ssl=context, select_subprotocol=pick, max_size=None):
        await asyncio.Future()


asyncio.run(main())
