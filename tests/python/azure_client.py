"""OpenAI's client for Azure against a gateway. Prints one JSON object a step.

Arguments: BASE_URL MODEL [KEY]. The base URL ends in `/v1`, where the client appends `/openai`.
"""

import json
import sys

from openai import AzureOpenAI, NotFoundError, OpenAI

host, model, key = sys.argv[1].removesuffix("/v1"), sys.argv[2], sys.argv[3]
question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
asked = {"model": model, "messages": question, "temperature": 0, "max_tokens": 16}

older = AzureOpenAI(azure_endpoint=host, api_key=key, api_version="2024-10-21", max_retries=0, timeout=120)
text = "".join(chunk.choices[0].delta.content or "" for chunk in older.chat.completions.create(**asked, stream=True))
print(json.dumps({"older": older.chat.completions.create(**asked).choices[0].message.content, "streamed": text,
                  "models": [card.id for card in older.models.list()]}))
newer = OpenAI(base_url=host + "/openai/v1/", api_key=key, max_retries=0, timeout=120)
print(json.dumps({"newer": newer.chat.completions.create(**asked).choices[0].message.content,
                  "responses": newer.responses.create(model=model, input="Hi", max_output_tokens=4).object}))
try:
    older.chat.completions.create(**asked | {"model": "nope"})
except NotFoundError as refused:
    print(json.dumps({"refused": refused.code}))
