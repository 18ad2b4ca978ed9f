"""Requests by the official OpenAI client, and labels of their answers by the same client. Prints one JSON object a step.

Arguments: BASE_URL KEY OTHER_KEY.
"""

import json
import sys

from openai import APIStatusError, OpenAI

base_url, key, other_key = sys.argv[1:4]
client = OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
other = OpenAI(base_url=base_url, api_key=other_key, max_retries=0, timeout=120)
question = [{"role": "user", "content": "What is the capital of France?"}]


def label(who, **fields):
    try:
        print(json.dumps(who.post("/feedback", cast_to=object, body=fields)))
    except APIStatusError as refused:
        error = refused.body
        print(json.dumps({"status": refused.status_code, "code": error["code"], "param": error["param"]}))


def models():
    """A model whose server speaks the caller's API, and one whose answers are translated."""
    return ["gpt", "claude"]


for model in models():
    whole = client.chat.completions.create(model=model, messages=question)
    label(client, response_id=whole.id, score=1)
    # The id of the request is in a header of every answer.
    raw = client.chat.completions.with_raw_response.create(model=model, messages=question)
    label(client, request_id=raw.headers["x-request-id"], score=0.5, label="short")
    for chunk in client.chat.completions.create(model=model, messages=question, stream=True):
        streamed = chunk.id
    label(client, response_id=streamed, score=0)
    response = client.responses.create(model=model, input="What is the capital of France?")
    label(client, response_id=response.id, predicted="Paris", expected="Paris", confidence=0.9)
    for event in client.responses.create(model=model, input="What is the capital of France?", stream=True):
        if event.type == "response.created":
            streamed = event.response.id
    label(client, response_id=streamed, predicted="Paris", expected="Rome", confidence=0.8)
    label(other, response_id=streamed, score=0)
