"""Features of the built-in model beyond plain text, by the official client; prints one JSON object a line."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from openai import BadRequestError, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
MODEL = sys.argv[2]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def ask(**more):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 12, **more})


def tell(**facts):
    print(json.dumps(facts), flush=True)


# Several answers, whole and streamed; the first is what a request for one gives.
one = ask(seed=5)
three = ask(seed=5, n=3)
streamed = {}
for chunk in ask(seed=5, n=3, stream=True):
    for choice in chunk.choices:
        text, reason = streamed.get(choice.index, ("", None))
        streamed[choice.index] = (text + (choice.delta.content or ""), choice.finish_reason or reason)
tell(
    one=one.choices[0].message.content,
    three=[choice.message.content for choice in three.choices],
    indexes=[choice.index for choice in three.choices],
    reasons=[choice.finish_reason for choice in three.choices],
    streamed=[streamed[n][0] for n in sorted(streamed)],
    streamed_reasons=[streamed[n][1] for n in sorted(streamed)],
    usage=[three.usage.prompt_tokens, three.usage.completion_tokens],
    cached=three.usage.prompt_tokens_details.cached_tokens,
)

# Log probabilities.
whole = ask(temperature=0, logprobs=True, top_logprobs=3)
parts = [
    token
    for chunk in ask(temperature=0, logprobs=True, top_logprobs=3, stream=True)
    for choice in chunk.choices
    if choice.logprobs
    for token in choice.logprobs.content
]
content = whole.choices[0].logprobs.content
tell(
    text=whole.choices[0].message.content,
    tokens="".join(token.token for token in content),
    bytes=bytes(b for token in content for b in token.bytes).decode(),
    likeliest=all(token.top_logprobs[0].token == token.token for token in content),
    three=all(len(token.top_logprobs) == 3 for token in content),
    logprobs=[token.logprob for token in content] == [token.logprob for token in parts],
    negative=all(token.logprob <= 0 for token in content),
)


# JSON, by mode, by schema, and as a type of the client's own.
class City(BaseModel):
    name: str
    is_capital: bool
    population: int


schema = {
    "type": "object",
    "properties": {"name": {"enum": ["Paris", "Rome"]}, "isCapital": {"type": "boolean"}},
    "required": ["name", "isCapital"],
    "additionalProperties": False,
}
by_schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
answers = [ask(temperature=1.5, seed=n, max_tokens=60, response_format=by_schema) for n in range(3)]
parsed = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "Paris?"}], response_format=City, max_tokens=120, temperature=0
)
free = ask(temperature=0, max_tokens=100, response_format={"type": "json_object"})
text = "".join(
    choice.delta.content or ""
    for chunk in ask(temperature=0, max_tokens=60, response_format=by_schema, stream=True)
    for choice in chunk.choices
)
tell(
    schema=[json.loads(answer.choices[0].message.content) for answer in answers],
    reasons=[answer.choices[0].finish_reason for answer in answers],
    parsed=type(parsed.choices[0].message.parsed).__name__,
    free=free.choices[0].message.content.lstrip()[:1],
    streamed=json.loads(text)["name"] in ("Paris", "Rome"),
)

# Sampling parameters.
biased = ask(temperature=0, max_tokens=3, logit_bias={"504": 100}, logprobs=True)
tell(
    biased=len({token.token for token in biased.choices[0].logprobs.content}),
    extensions=ask(seed=1, extra_body={"min_p": 0.1, "top_k": 20, "repetition_penalty": 1.2}).choices[0].finish_reason,
    penalised=ask(seed=1, presence_penalty=1, frequency_penalty=0.5).choices[0].finish_reason,
)

# Refusals name the field.
for wrong in (
    {"n": 99},
    {"top_logprobs": 3},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
    {"logit_bias": {"5": 1000}},
):
    try:
        ask(**wrong)
        tell(wrong=list(wrong), code=None)
    except BadRequestError as error:
        tell(wrong=list(wrong), param=error.param)

# Sixteen seeded requests, each alone, then all at once.
def seeded(n):
    question = [{"role": "user", "content": f"Tell me about the number {n}."}]
    return ask(messages=question, seed=n, max_tokens=10, temperature=0.9).choices[0].message.content


alone = [seeded(n) for n in range(16)]
with ThreadPoolExecutor(16) as pool:
    together = list(pool.map(seeded, range(16)))
tell(same=alone == together, different=len(set(alone)))
