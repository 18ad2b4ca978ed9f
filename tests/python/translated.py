"""Official clients of one API before a server of another one; prints one JSON object a line.

Usage: translated.py BASE_URL MODEL anthropic|openai SCENARIO...
"""

import json
import sys

import anthropic
import openai

BASE, MODEL, API = sys.argv[1:4]
messages = anthropic.Anthropic(base_url=BASE.removesuffix("/v1"), api_key="none", max_retries=0)
chat = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PICTURE = "iVBORw0KGgo="


def tell(**facts):
    print(json.dumps(facts), flush=True)


def by_messages(**more):
    asked = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}], **more}
    raw = messages.messages.with_raw_response.create(**asked)
    with messages.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    whole = raw.parse()
    # The client sets `stop_details` in messages that it joins from a stream.
    show = lambda message: {k: v for k, v in message.to_dict().items() if k not in ["id", "stop_details"]}
    tell(whole=show(whole), streamed=show(streamed), dropped=raw.headers.get("x-spillway-dropped"))
    return whole


def by_chat(**more):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}
    raw = chat.chat.completions.with_raw_response.create(**asked)
    whole = raw.parse()
    text, reasoning, blocks, calls, reason, usage = "", "", [], {}, None, None
    for chunk in chat.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage.to_dict() if chunk.usage else usage
        for choice in chunk.choices:
            delta, reason = choice.delta, choice.finish_reason or reason
            text += delta.content or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            blocks += getattr(delta, "thinking_blocks", None) or []
            for call in delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                known["name"] += call.function.name or ""
                known["arguments"] += call.function.arguments or ""
    choice = whole.choices[0]
    message = choice.message.to_dict()
    tell(
        whole={
            "text": message.get("content"),
            "reasoning": message.get("reasoning_content"),
            "blocks": message.get("thinking_blocks"),
            "calls": [{"id": c.id, **c.function.to_dict()} for c in choice.message.tool_calls or []],
            "reason": choice.finish_reason,
            "usage": whole.usage.to_dict(),
        },
        streamed={
            "text": text,
            "reasoning": reasoning,
            "blocks": blocks,
            "calls": list(calls.values()),
            "reason": reason,
            "usage": usage,
        },
        dropped=raw.headers.get("x-spillway-dropped"),
    )
    return message


def text():
    by_messages(system="Be brief.") if API == "anthropic" else by_chat(max_tokens=64)


def rich():
    """Images, tools and their results, structured output."""
    if API == "anthropic":
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
        by_messages(
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "r"}]},
            ],
            tools=[{"name": "f", "description": "F", "input_schema": SCHEMA}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            stop_sequences=["END"],
            metadata={"user_id": "u"},
            output_config={"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
        )
    else:
        by_chat(
            messages=[
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
                    ],
                },
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                {"role": "tool", "tool_call_id": "t1", "content": "r"},
                {"role": "user", "content": "so?"},
            ],
            tools=[{"type": "function", "function": {"name": "f", "description": "F", "parameters": SCHEMA}}],
            tool_choice="required",
            parallel_tool_calls=False,
            stop=["END"],
            user="u",
            reasoning_effort="high",
            response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
        )


def calls():
    """The tool calls of a stream."""
    asked = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
    with messages.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    told = [{"id": block.id, "name": block.name, "input": block.input} for block in message.content]
    tell(calls=told, stop=message.stop_reason)


def thinking():
    """Reasoning survives a round trip: the answer goes back as it came."""
    if API == "openai":
        message = by_chat()
        again = [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "go on"}]
        by_chat(messages=again)
    else:
        message = by_messages()
        content = [block.to_dict() for block in message.content]
        by_messages(
            messages=[
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": content},
                {"role": "user", "content": "go on"},
            ]
        )


def errors():
    call = by_messages if API == "anthropic" else by_chat
    try:
        call()
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        facts = {"class": type(error).__name__, "status": error.status_code, "message": str(error.body)}
        facts["code"] = getattr(error, "error_code", None) or getattr(error, "code", None)
        tell(**facts)
    try:
        if API == "anthropic":
            asked = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
            for _ in messages.messages.create(**asked, stream=True):
                pass
        else:
            for _ in chat.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True):
                pass
        tell(streamed=None)
    except (anthropic.APIError, openai.APIError) as error:
        tell(streamed=str(error.body if error.body else error))


for scenario in sys.argv[4:]:
    globals()[scenario]()
