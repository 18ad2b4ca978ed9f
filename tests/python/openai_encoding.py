"""Embeddings and text completions by the official client; prints one JSON object a line."""

import json
import math
import sys

from openai import BadRequestError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
ENCODER, DECODER = sys.argv[2], sys.argv[3]


def tell(**facts):
    print(json.dumps(facts), flush=True)


def refused(call):
    try:
        call()
    except BadRequestError as error:
        return error.param
    return None


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose last year."]
# The client asks for base64 by itself and decodes it.
together = client.embeddings.create(model=ENCODER, input=TEXTS)
floats = client.embeddings.create(model=ENCODER, input=TEXTS[0], encoding_format="float")
short = client.embeddings.create(model=ENCODER, input=TEXTS[0], dimensions=64)
vectors = [data.embedding for data in together.data]
tell(
    dimensions=[len(vector) for vector in vectors],
    indexes=[data.index for data in together.data],
    norms=[round(math.sqrt(sum(x * x for x in vector)), 4) for vector in vectors],
    alone=cosine(vectors[0], floats.data[0].embedding) > 0.99999,
    short=len(short.data[0].embedding),
    near=cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.2,
    usage=[together.usage.prompt_tokens, together.usage.total_tokens],
    chat=refused(lambda: client.chat.completions.create(model=ENCODER, messages=[{"role": "user", "content": "?"}])),
)

asked = {"model": DECODER, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
whole = client.completions.create(**asked)
parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
tell(
    object=whole.object,
    text=whole.choices[0].text,
    reason=whole.choices[0].finish_reason,
    streamed="".join(choice.text for part in parts for choice in part.choices),
    usage=[whole.usage.completion_tokens, parts[-1].usage.completion_tokens],
)
tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
tell(
    tools=refused(
        lambda: client.chat.completions.create(model=DECODER, messages=[{"role": "user", "content": "?"}], tools=tools)
    )
)
