"""Official clients of three APIs before servers of other ones: vectors, the older completions, and counts of tokens. Each is asked
of the gateway, and of the server itself where that has the API too.

Arguments: the gateway's /v1 URL, then the server's URL. Prints a JSON line for each observation.
"""

import json
import sys

import anthropic
import ollama
import openai

GATEWAY, SERVER = sys.argv[1].removesuffix("/v1"), sys.argv[2]
TEXTS = ["a proxy passes requests on", "Zürich liegt am See"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def tell(name, **facts):
    print(json.dumps({"name": name, **facts}), flush=True)


def refused(call):
    try:
        call()
    except openai.APIStatusError as refusal:
        return {"status": refusal.status_code, "param": refusal.body.get("param")}
    except anthropic.APIStatusError as refusal:
        return {"status": refusal.status_code, "type": refusal.body["error"]["type"]}
    except ollama.ResponseError as refusal:
        return {"status": refusal.status_code, "message": refusal.error}
    return {"status": "none"}


own, far = (ollama.Client(host=url, headers={"x-to": "openai"}) for url in (SERVER, GATEWAY))
many = [client.embed(model="minilm", input=TEXTS) for client in (own, far)]
one = [client.embeddings(model="minilm", prompt=TEXTS[1]) for client in (own, far)]
close = lambda a, b: all(abs(x - y) < 1e-5 for x, y in zip(a, b, strict=True))
tell("embed", same=all(close(*pair) for pair in zip(*(answer.embeddings for answer in many), strict=True)),
     model=many[1].model, tokens=[answer.prompt_eval_count for answer in many])
tell("embeddings", same=close(*(answer.embedding for answer in one)))
tell("embed refused", **refused(lambda: far.embed(model="minilm", input="a", options={"num_ctx": 9})))

texts = openai.OpenAI(base_url=f"{GATEWAY}/v1", api_key="none", max_retries=0, default_headers={"x-to": "anthropic"})
asked = {"model": "smollm2", "prompt": QUESTION[0]["content"], "max_tokens": 12, "temperature": 0}
whole = texts.completions.create(**asked)
streamed, usage, reason = "", None, None
for chunk in texts.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        streamed, reason = streamed + choice.text, choice.finish_reason or reason
messages = anthropic.Anthropic(base_url=SERVER, api_key="none", max_retries=0)
own = messages.messages.create(model="smollm2", max_tokens=12, messages=QUESTION, extra_body={"temperature": 0})
tell("completions", same=whole.choices[0].text == streamed == own.content[0].text, text=streamed,
     reasons=[whole.choices[0].finish_reason, reason], object=whole.object, model=whole.model,
     usage=[[one.prompt_tokens, one.completion_tokens] for one in (whole.usage, usage)],
     own=[own.usage.input_tokens + (own.usage.cache_read_input_tokens or 0), own.usage.output_tokens])
tell("completions refused", echo=refused(lambda: texts.completions.create(**asked, echo=True)),
     tokens=refused(lambda: texts.completions.create(**{**asked, "prompt": [1, 2]})))

chats = openai.OpenAI(base_url=f"{GATEWAY}/v1", api_key="none", max_retries=0, default_headers={"x-to": "chat"})
server = openai.OpenAI(base_url=f"{SERVER}/v1", api_key="none", max_retries=0)
several = {**asked, "n": 2, "temperature": 1, "seed": 7, "stop": ["."]}
pieces, ended = ["", ""], {}
for chunk in chats.completions.create(**several, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces[choice.index] += choice.text
        ended.update({choice.index: choice.finish_reason} if choice.finish_reason else {})
own = server.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=12, n=2, temperature=1, seed=7, stop=["."])
whole = chats.completions.create(**several)
tell("completions by chat", own=[choice.message.content for choice in own.choices], streamed=pieces,
     whole=[choice.text for choice in whole.choices], kinds=[whole.object, chunk.object],
     reasons=[[choice.finish_reason for choice in own.choices], [choice.finish_reason for choice in whole.choices], [ended[0], ended[1]]],
     usage=[[one.prompt_tokens, one.completion_tokens] for one in (own.usage, whole.usage, usage)])
tell("completions by chat refused", params=[refused(lambda: chats.completions.create(**asked, **field))["param"]
     for field in ({"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 1})])

tools = [{"name": "f", "description": "F", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
counts = []
for url in (SERVER, GATEWAY):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, default_headers={"x-to": "openai"})
    counts.append(client.messages.count_tokens(model="smollm2", system="Be brief.", messages=QUESTION).input_tokens)
tell("counts of messages", counts=counts)
chat = anthropic.Anthropic(base_url=GATEWAY, api_key="none", max_retries=0, default_headers={"x-to": "chat"})
tell("counts refused", **refused(lambda: chat.messages.count_tokens(model="smollm2", messages=QUESTION)))
counts = []
for url in (SERVER, GATEWAY):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, default_headers={"x-to": "anthropic"})
    counts.append(client.responses.input_tokens.count(model="smollm2", instructions="Be brief.", input=QUESTION).input_tokens)
tell("counts of responses", counts=counts)
vllm = anthropic.Anthropic(base_url=GATEWAY, api_key="none", max_retries=0, default_headers={"x-to": "vllm"})
tell("counts by vllm", count=vllm.messages.count_tokens(model="smollm2", messages=QUESTION, tools=tools).input_tokens)
