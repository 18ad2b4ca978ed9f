"""The official client of Anthropic's Messages API against a gateway; prints one JSON object a line.

Usage: anthropic_client.py BASE_URL MODEL SCENARIO...
"""

import json
import sys

import anthropic

BASE, MODEL = sys.argv[1].removesuffix("/v1"), sys.argv[2]
client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def tell(**facts):
    print(json.dumps(facts), flush=True)


def shown(message):
    """A message without what differs from run to run."""
    facts = message.to_dict()
    facts.pop("id")
    # The client sets it in messages that it joins from a stream.
    facts.pop("stop_details", None)
    return facts


def refused(call):
    try:
        call()
    except anthropic.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "type": error.type,
            "code": error.error_code,
            "message": error.api_message,
            "id": error.request_id,
            "body_id": (error.body or {}).get("request_id"),
        }
    return None


def text():
    asked = {"model": MODEL, "max_tokens": 24, "messages": QUESTION, "extra_body": {"temperature": 0}}
    raw = client.messages.with_raw_response.create(system="Be brief.", **asked)
    whole = raw.parse()
    with client.messages.stream(system=[{"type": "text", "text": "Be brief."}], **asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    events = client.messages.create(stream=True, system="Be brief.", **asked)
    start = next(iter(events))
    events.close()
    tell(
        whole=shown(whole),
        streamed=shown(streamed),
        ids=[whole.id, streamed.id],
        kinds=sorted(set(kinds)),
        start=start.message.usage.input_tokens,
        request_id=bool(raw.headers.get("request-id")),
        served_by=raw.headers.get("x-spillway-served-by"),
        count=client.messages.count_tokens(model=MODEL, messages=QUESTION, system="Be brief.").input_tokens,
    )


def stops():
    whole = client.messages.create(
        model=MODEL, max_tokens=40, messages=QUESTION, stop_sequences=["zzz", "France"], extra_body={"temperature": 0}
    )
    with client.messages.stream(
        model=MODEL, max_tokens=40, messages=QUESTION, stop_sequences=["zzz", "France"], extra_body={"temperature": 0}
    ) as stream:
        streamed = stream.get_final_message()
    short = client.messages.create(model=MODEL, max_tokens=2, messages=QUESTION, thinking={"type": "disabled"})
    tell(whole=shown(whole), streamed=shown(streamed), short=short.stop_reason)


def tools():
    asked = {"model": MODEL, "max_tokens": 60, "messages": QUESTION, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    for choice in [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}]:
        whole = client.messages.create(tool_choice=choice, **asked)
        with client.messages.stream(tool_choice=choice, **asked) as stream:
            streamed = stream.get_final_message()
        call = whole.content[-1]
        tell(
            reason=whole.stop_reason,
            kind=call.type,
            name=call.name,
            input=call.input,
            streamed=[streamed.stop_reason, streamed.content[-1].name, streamed.content[-1].input],
        )
    turn = QUESTION + [
        {"role": "assistant", "content": [call.to_dict()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 12 degrees."}]},
    ]
    free = client.messages.create(**{**asked, "messages": turn, "max_tokens": 8}, tool_choice={"type": "none"})
    tell(answered=free.stop_reason, content=[block.type for block in free.content])


def refusals():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    ask = {"model": MODEL, "max_tokens": 8, "messages": QUESTION}
    for name, change in {
        "image": {"messages": [{"role": "user", "content": [image]}]},
        "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "model": {"model": "nobody"},
        "prefill": {"messages": QUESTION + [{"role": "assistant", "content": "The"}]},
    }.items():
        tell(name=name, **(refused(lambda: client.messages.create(**{**ask, **change})) or {}))
    raw = lambda body: client.post("/v1/messages", body=body, cast_to=object)
    tell(name="max_tokens", **(refused(lambda: raw({"model": MODEL, "messages": QUESTION})) or {}))


def models():
    listed = client.models.list()
    tell(ids=[model.id for model in listed.data], more=listed.has_more, one=client.models.retrieve(listed.data[0].id).id)
    tell(missing=refused(lambda: client.models.retrieve("nobody")))


for scenario in sys.argv[3:]:
    globals()[scenario]()
