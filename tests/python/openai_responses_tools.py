"""Function calls through the Responses API, whole and streamed, with the official OpenAI client. Prints one JSON object.

Arguments: BASE_URL MODEL.
"""

import json
import sys

from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

client = OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0, timeout=120)
events = TypeAdapter(ResponseStreamEvent)
weather = {"type": "function", "name": "weather", "description": "Weather of a city.", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"],
    "additionalProperties": False}}
asked = {"model": sys.argv[2], "input": [{"role": "user", "content": "How is the weather in Paris?"}], "tools": [weather],
         "tool_choice": "required", "temperature": 0, "max_output_tokens": 64}

raw = client.responses.with_raw_response.create(**asked)
Response.model_validate_json(raw.content)
whole = raw.parse()
call = whole.output[0]
kinds, streamed = [], None
with client.responses.with_streaming_response.create(**asked, stream=True) as stream:
    for line in stream.iter_lines():
        if line.startswith("data: "):
            event = events.validate_json(line[len("data: "):])
            kinds.append(event.type)
            if event.type == "response.function_call_arguments.done":
                streamed = event.arguments
result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
turn = client.responses.create(model=sys.argv[2], input=asked["input"] + [call, result], tools=[weather], temperature=0,
                               tool_choice="none", max_output_tokens=8)
print(json.dumps({"items": [item.type for item in whole.output], "name": call.name, "arguments": json.loads(call.arguments),
                  "streamed": json.loads(streamed), "kinds": kinds, "answered": turn.output[0].type}))
