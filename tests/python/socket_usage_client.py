"""OpenAI's client asks for one response after the other over a socket, until that ends or ten have come.

Usage: socket_usage_client.py URL KEY MODEL realtime|responses
"""

import json
import sys

import openai
from websockets.exceptions import ConnectionClosed, InvalidStatus

url, key, model, api = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
options = {"proxy": None}
if api == "realtime":
    connecting = client.realtime.connect(model=model, websocket_connection_options=options)
    asked, last = {}, "response.done"
else:
    connecting = client.responses.connect(websocket_connection_options=options, max_retries=0)
    asked, last = {"model": model, "input": "Hi"}, "response.completed"
told, models = {"responses": 0, "text": "", "tokens": 0}, set()


def take(event):
    """Notes the name of the model where the event has one."""
    thing = getattr(event, "session", None) or getattr(event, "response", None)
    models.update({thing.model} if getattr(thing, "model", None) else {})
    return event


try:
    with connecting as connection:
        while told["responses"] < 10:
            connection.response.create(**asked)
            event = take(connection.recv())
            while event.type != last:
                told["text"] += event.delta if event.type == "response.output_text.delta" else ""
                event = take(connection.recv())
            told["responses"] += 1
            told["tokens"] += event.response.usage.total_tokens
except ConnectionClosed as closed:
    told |= {"code": closed.rcvd.code, "reason": closed.rcvd.reason}
except InvalidStatus as refused:
    told |= {"status": refused.response.status_code}
if told["responses"] == 10:
    told |= {"models": sorted(models)}
print(json.dumps(told))
