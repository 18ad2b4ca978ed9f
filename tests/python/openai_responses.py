"""The official OpenAI client's Responses API against a gateway, as a user would write it. Prints one JSON object a step.

Arguments: BASE_URL MODEL. Exits with an error as soon as the client rejects anything, and where an object or event does not
satisfy its type in the SDK when read strictly.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

base_url, model = sys.argv[1], sys.argv[2]
client = OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120)
question = "What is the capital of France? Answer in one sentence."
asked = {"model": model, "input": question, "temperature": 0, "max_output_tokens": 16}
events = TypeAdapter(ResponseStreamEvent)


def tell(**facts):
    print(json.dumps(facts))


def check(raw):
    """Reads an answer by its type. The SDK itself accepts anything."""
    Response.model_validate_json(raw)
    return json.loads(raw)


raw = client.responses.with_raw_response.create(**asked, instructions="Be brief.", metadata={"who": "test"})
whole = check(raw.content)
parsed = raw.parse()
count = client.responses.input_tokens.count(model=model, input=question, instructions="Be brief.")
tell(text=parsed.output_text, status=parsed.status, model=parsed.model, stored=whole["store"], metadata=whole["metadata"],
     instructions=whole["instructions"], usage=parsed.usage.total_tokens, id=parsed.id[:5],
     input=[count.object, count.input_tokens == parsed.usage.input_tokens])

text, kinds, numbers = "", [], []
with client.responses.with_streaming_response.create(**asked, stream=True) as stream:
    for line in stream.iter_lines():
        if line.startswith("data: "):
            event = events.validate_json(line[len("data: "):])
            kinds.append(event.type)
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed" or event.type == "response.incomplete":
                last = event.response
tell(text=text, kinds=list(dict.fromkeys(kinds)), counted=numbers == list(range(len(numbers))), final=last.output_text,
     usage=last.usage.total_tokens)

with client.responses.stream(**asked) as stream:
    deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    tell(helper=stream.get_final_response().output_text, deltas=deltas)


class City(BaseModel):
    name: str
    large: bool


told = client.responses.parse(model=model, input="Paris is a large city.", text_format=City, temperature=0,
                              max_output_tokens=64)
tell(city=isinstance(told.output_parsed, City), format=told.text.format.type)

turn = [{"role": "user", "content": "Say one word."}]
first = client.responses.create(model=model, input=turn, temperature=0, max_output_tokens=8)
turn += first.output + [{"role": "user", "content": [{"type": "input_text", "text": "Another."}]}]
second = client.responses.create(model=model, input=turn, temperature=0, max_output_tokens=8)
tell(turn=second.status, more=second.usage.input_tokens > first.usage.input_tokens)


async def asynchronous():
    async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120) as other:
        whole = await other.responses.create(**asked)
        text = ""
        async for event in await other.responses.create(**asked, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
        async with other.responses.stream(**asked) as stream:
            final = await stream.get_final_response()
        return whole.output_text, text, final.output_text

tell(asynchronous=asyncio.run(asynchronous()))

image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}]}]
for name, arguments, error in [
    ("unknown model", asked | {"model": "nope"}, NotFoundError),
    ("stored", asked | {"store": True}, BadRequestError),
    ("previous", asked | {"previous_response_id": "resp_1"}, BadRequestError),
    ("image", asked | {"input": image}, BadRequestError),
    ("tool of the provider", asked | {"tools": [{"type": "web_search"}]}, BadRequestError),
]:
    try:
        client.responses.create(**arguments)
        tell(refused=name, param=None)
    except error as refused:
        tell(refused=name, param=refused.param)
try:
    client.responses.retrieve("resp_1")
except NotFoundError as refused:
    tell(refused="retrieved", code=refused.code)
