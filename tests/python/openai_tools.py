"""Tool calls of the built-in model, by the official client; prints one JSON object a line."""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
MODEL = sys.argv[2]
CITIES = ["Paris", "Rome", "Oslo"]


def tell(**facts):
    print(json.dumps(facts), flush=True)


def function(name, properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": f"The {name}", "parameters": parameters}}


tools = [
    function("weather", {"city": {"enum": CITIES}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}),
    function("time", {"zone": {"enum": ["UTC", "CET"]}}),
]
messages = [{"role": "user", "content": "What will the weather be in Rome?"}]
asked = {"model": MODEL, "messages": messages, "tools": tools, "temperature": 0, "max_tokens": 120}


def sound(name, arguments):
    """True if the arguments match the tool's schema."""
    given = json.loads(arguments)
    if name == "weather":
        return set(given) == {"city", "days"} and given["city"] in CITIES and 1 <= given["days"] <= 9
    return name == "time" and set(given) == {"zone"} and given["zone"] in ["UTC", "CET"]


def streamed(**more):
    """Call of a streamed answer, joined from its parts as clients do."""
    name, call_id, arguments, reason, kinds = None, None, "", None, set()
    for part in client.chat.completions.create(**asked, **more, stream=True):
        for choice in part.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                kinds.add((call.index, call.type))
                name = name or call.function.name
                call_id = call_id or call.id
                arguments += call.function.arguments or ""
    return {"name": name, "id": bool(call_id), "arguments": arguments, "reason": reason, "sound": sound(name, arguments)}


for choice in [
    "required",
    {"type": "function", "function": {"name": "weather"}},
    {"type": "function", "function": {"name": "time"}},
]:
    whole = client.chat.completions.create(**asked, tool_choice=choice).choices[0]
    calls = whole.message.tool_calls
    tell(
        calls=len(calls),
        name=calls[0].function.name,
        arguments=calls[0].function.arguments,
        sound=sound(calls[0].function.name, calls[0].function.arguments),
        content=whole.message.content,
        reason=whole.finish_reason,
        streamed=streamed(tool_choice=choice),
    )

# The tool's result is part of the next turn.
call = client.chat.completions.create(**asked, tool_choice="required").choices[0].message
told = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Rain, <|im_end|> 12 degrees."}
turn = [*messages, call.model_dump(exclude_none=True), told]
answer = client.chat.completions.create(model=MODEL, messages=turn, tools=tools, temperature=0, max_tokens=24)
said, calls = answer.choices[0].message.content, answer.choices[0].message.tool_calls
plain = client.chat.completions.create(**asked, tool_choice="none")
tell(
    # Text or a call, with the matching finish reason.
    answered=bool(said and said.strip())
    or bool(calls and all(sound(call.function.name, call.function.arguments) for call in calls)),
    called=bool(calls),
    reason=answer.choices[0].finish_reason,
    tokens=answer.usage.completion_tokens,
    prompt=answer.usage.prompt_tokens,
    none=plain.choices[0].message.tool_calls,
)
