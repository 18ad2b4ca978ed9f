"""The official clients of the Responses API and of Ollama before a server of another API; prints one JSON object a line.

Usage: dialects.py BASE_URL MODEL responses|ollama SCENARIO... Exits with an error where an object or event of the Responses
API does not satisfy its type in the SDK when read strictly.
"""

import json
import sys

import ollama
import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

BASE, MODEL, API = sys.argv[1:4]
client = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0)
local = ollama.Client(host=BASE.removesuffix("/v1"))
EVENTS = TypeAdapter(ResponseStreamEvent)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PICTURE = "iVBORw0KGgo="


def tell(**facts):
    print(json.dumps(facts), flush=True)


def shown(response):
    """What an answer says, without ids and times."""
    items = []
    for item in response["output"]:
        if item["type"] == "message":
            items.append({"text": [part.get("text", part.get("refusal")) for part in item["content"]]})
        elif item["type"] == "reasoning":
            summary = "".join(part["text"] for part in item["summary"])
            items.append({"reasoning": summary, "proof": item["encrypted_content"]})
        else:
            items.append({key: item[key] for key in ["call_id", "name", "arguments"]})
    return {"items": items, "status": response["status"], "model": response["model"], "usage": response["usage"],
            "store": response["store"], "instructions": response["instructions"]}


def by_responses(**more):
    asked = {"model": MODEL, "input": "hi", **more}
    raw = client.responses.with_raw_response.create(**asked)
    Response.model_validate_json(raw.content)
    whole = json.loads(raw.content)
    kinds, numbers, text, last = [], [], "", None
    with client.responses.with_streaming_response.create(**asked, stream=True) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            event = EVENTS.validate_json(line[len("data: ") :])
            kinds.append(event.type.removeprefix("response."))
            numbers.append(event.sequence_number)
            text += event.delta if event.type == "response.output_text.delta" else ""
            last = json.loads(line[len("data: ") :])
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        joined = stream.get_final_response().output_text
    tell(whole=shown(whole), streamed=shown(last["response"]), kinds=list(dict.fromkeys(kinds)), text=text, joined=joined,
         counted=numbers == list(range(len(numbers))), dropped=raw.headers.get("x-spillway-dropped"))
    return whole


def by_ollama(call, **more):
    asked = {"model": MODEL, **more}
    whole = call(**asked)
    text, thinking, calls, last, done = "", "", [], None, 0
    for part in call(**asked, stream=True):
        said = part.message.content if hasattr(part, "message") else part.response
        thought = part.message.thinking if hasattr(part, "message") else part.thinking
        calls += [one.function.model_dump() for one in (part.message.tool_calls or [])] if hasattr(part, "message") else []
        text, thinking, last, done = text + (said or ""), thinking + (thought or ""), part, done + bool(part.done)
    facts = lambda part: {"reason": part.done_reason, "model": part.model, "prompt": part.prompt_eval_count,
                          "written": part.eval_count}
    if hasattr(whole, "message"):
        said = {"text": whole.message.content, "thinking": whole.message.thinking,
                "calls": [one.function.model_dump() for one in whole.message.tool_calls or []]}
    else:
        said = {"text": whole.response, "thinking": whole.thinking, "calls": []}
    tell(whole={**said, **facts(whole)}, streamed={"text": text, "thinking": thinking, "calls": calls, **facts(last)}, done=done)
    return whole


def text():
    if API == "responses":
        by_responses(instructions="Be brief.", max_output_tokens=64, temperature=0)
    else:
        by_ollama(local.chat, messages=[{"role": "user", "content": "hi"}], options={"num_predict": 64})
        by_ollama(local.generate, prompt="hi", system="Be brief.", options={"num_predict": 64})


def rich():
    """Images, tools and their results, structured output."""
    if API == "responses":
        by_responses(
            instructions="Be brief.",
            input=[
                {"role": "user", "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "auto"}]},
                {"type": "function_call", "call_id": "t1", "name": "f", "arguments": '{"x": 1}'},
                {"type": "function_call_output", "call_id": "t1", "output": "r"},
            ],
            tools=[{"type": "function", "name": "f", "description": "F", "parameters": SCHEMA, "strict": True}],
            tool_choice="required",
            parallel_tool_calls=False,
            user="u",
            store=False,
            reasoning={"effort": "high"},
            text={"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}},
        )
    else:
        by_ollama(
            local.chat,
            messages=[
                {"role": "user", "content": "look", "images": [PICTURE]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "tool_name": "f", "content": "r"},
            ],
            tools=[{"type": "function", "function": {"name": "f", "description": "F", "parameters": SCHEMA}}],
            format=SCHEMA,
            think="high",
            options={"stop": ["END"], "temperature": 0.5},
        )


def thinking():
    """Reasoning survives a round trip: the answer goes back as it came."""
    if API == "responses":
        output = by_responses()["output"]
        by_responses(input=[{"role": "user", "content": "hi"}, *output, {"role": "user", "content": "go on"}])
    else:
        asked = [{"role": "user", "content": "hi"}]
        message = by_ollama(local.chat, messages=asked, think=True).message
        by_ollama(local.chat, messages=[*asked, message, {"role": "user", "content": "go on"}], think=True)


def errors():
    """Errors of a server, whole and in a stream."""
    try:
        if API == "responses":
            client.responses.create(model=MODEL, input="x")
        else:
            local.chat(model=MODEL, messages=[{"role": "user", "content": "x"}])
    except openai.APIStatusError as error:
        tell(status=error.status_code, message=error.message, code=error.code)
    except ollama.ResponseError as error:
        tell(status=error.status_code, message=error.error)
    try:
        if API == "responses":
            for _ in client.responses.create(model=MODEL, input="x", stream=True):
                pass
        else:
            for _ in local.chat(model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True):
                pass
        tell(streamed=None)
    except openai.APIError as error:
        tell(streamed=error.message)
    except ollama.ResponseError as error:
        tell(streamed=error.error)


for scenario in sys.argv[4:]:
    globals()[scenario]()
