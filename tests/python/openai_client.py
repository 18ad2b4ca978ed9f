"""The official OpenAI client against a gateway, as a user would write it. Prints one JSON object a request.

Arguments: BASE_URL MODEL. Exits with an error as soon as the client rejects anything.
"""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI

base_url, model = sys.argv[1], sys.argv[2]
client = OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120)
question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]

whole = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=16)
print(json.dumps({"whole": whole.choices[0].message.content, "finish": whole.choices[0].finish_reason,
                  "model": whole.model, "usage": whole.usage.total_tokens}))

text, usage, finish = "", None, None
for chunk in client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=16, stream=True,
                                            stream_options={"include_usage": True}):
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    if chunk.usage:
        usage = chunk.usage.total_tokens
print(json.dumps({"streamed": text, "finish": finish, "usage": usage}))

print(json.dumps({"models": [card.id for card in client.models.list()]}))

for name, call, error in [
    ("unknown model", lambda: client.chat.completions.create(model="nope", messages=question), NotFoundError),
    ("bad value", lambda: client.chat.completions.create(model=model, messages=question, temperature=9), BadRequestError),
]:
    try:
        call()
    except error as refused:
        print(json.dumps({"refused": name, "code": refused.code, "param": refused.param}))
