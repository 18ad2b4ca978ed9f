"""The official Ollama client against a gateway, as a user would write it. Prints one JSON object a step.

Arguments: BASE_URL MODEL. The base URL ends in `/v1`, which this API has no part of.
"""

import asyncio
import json
import sys

from ollama import AsyncClient, Client, ResponseError

host, model = sys.argv[1].removesuffix("/v1"), sys.argv[2]
client = Client(host=host, timeout=120)
question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
options = {"temperature": 0, "num_predict": 16}


def tell(**facts):
    print(json.dumps(facts))


whole = client.chat(model=model + ":latest", messages=question, options=options)
tell(text=whole.message.content, role=whole.message.role, done=whole.done, reason=whole.done_reason, model=whole.model,
     prompt=whole.prompt_eval_count, written=whole.eval_count,
     timed=whole.total_duration > 0 and whole.eval_duration > 0 and whole.prompt_eval_duration > 0)

parts = list(client.chat(model=model, messages=question, options=options, stream=True))
tell(text="".join(part.message.content for part in parts), done=[part.done for part in parts].count(True),
     last=parts[-1].done, prompt=parts[-1].prompt_eval_count, written=parts[-1].eval_count)

said = client.generate(model=model, prompt=question[0]["content"], options=options)
streamed = "".join(part.response for part in client.generate(model=model, prompt=question[0]["content"], options=options,
                                                             stream=True))
raw = client.generate(model=model, prompt="The capital of France is", raw=True, options=options)
tell(generated=said.response, streamed=streamed, raw=raw.response)

schema = {"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"]}
formed = client.chat(model=model, messages=[{"role": "user", "content": "Is Paris large?"}], format=schema,
                     options={"temperature": 0, "num_predict": 64})
tell(formed=isinstance(json.loads(formed.message.content)["large"], bool))

tell(models=[card.model for card in client.list().models], running=[card.model for card in client.ps().models],
     capabilities=client.show(model).capabilities, family=client.show(model).details.family)
tell(loaded=client.generate(model=model, prompt="").done_reason)


async def asynchronous():
    other = AsyncClient(host=host, timeout=120)
    whole = await other.chat(model=model, messages=question, options=options)
    text = ""
    async for part in await other.chat(model=model, messages=question, options=options, stream=True):
        text += part.message.content
    return whole.message.content, text

tell(asynchronous=asyncio.run(asynchronous()))

for name, call in [
    ("unknown model", lambda: client.chat(model="nope", messages=question)),
    ("image", lambda: client.chat(model=model, messages=[{"role": "user", "content": "x", "images": [b"hi"]}])),
    ("think", lambda: client.chat(model=model, messages=question, think=True)),
    ("suffix", lambda: client.generate(model=model, prompt="a", suffix="b")),
    ("pull", lambda: client.pull(model)),
    ("bad value", lambda: client.chat(model=model, messages=question, options={"temperature": 9})),
]:
    try:
        call()
    except ResponseError as refused:
        tell(refused=name, status=refused.status_code, error=refused.error)
