"""OpenAI's client of the Realtime API. Usage: realtime_client.py URL KEY MODEL"""

import json
import sys

import openai
from websockets.exceptions import InvalidStatus

url, key, model = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
try:
    with client.realtime.connect(model=model, websocket_connection_options={"proxy": None}) as connection:
        created = connection.recv()
        assert created.type == "session.created", created
        texts, usage = [], None
        connection.response.create()
        for event in connection:
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
            if event.type == "response.done":
                usage = event.response.usage
                break
        print(json.dumps({
            "model": created.session.model, "authorization": created.session.instructions, "text": "".join(texts),
            "tokens": usage.total_tokens,
        }))
except InvalidStatus as error:
    print(json.dumps({"status": error.response.status_code, "body": json.loads(error.response.body)}))
