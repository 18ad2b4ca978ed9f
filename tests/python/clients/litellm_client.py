"""LiteLLM's SDK against a gateway, by its providers of several APIs. Prints one JSON object a step.

Arguments: BASE_URL MODEL STEP..., where a step is PROVIDER:WHAT, such as `openai:chat`. The base URL ends in `/v1`.
"""

import json
import sys

import litellm

base_url, model = sys.argv[1], sys.argv[2]
host = base_url.removesuffix("/v1")
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
litellm.telemetry = False
litellm.suppress_debug_info = True


def ask(provider, **more):
    base = base_url if provider == "openai" else host
    asked = {"messages": QUESTION, "max_tokens": 64, "temperature": 0, "num_retries": 0, **more}
    return litellm.completion(model=f"{provider}/{model}", api_base=base, api_key="unused", **asked)


def told(whole):
    choice = whole.choices[0]
    return {
        "text": choice.message.content,
        "reason": choice.finish_reason,
        "input": whole.usage.prompt_tokens,
        "output": whole.usage.completion_tokens,
    }


def chat(provider):
    return told(ask(provider))


def stream(provider):
    parts = list(ask(provider, stream=True, stream_options={"include_usage": True}))
    return {**told(litellm.stream_chunk_builder(parts)), "parts": sum(bool(part.choices and part.choices[0].delta.content) for part in parts)}


def tools(provider, **more):
    """A question, the call of a tool, its result, an answer."""
    asked = [{"role": "user", "content": "What is the weather in Rome?"}]

    def next_answer():
        found = ask(provider, messages=asked, tools=[WEATHER], **more)
        return litellm.stream_chunk_builder(list(found)) if more.get("stream") else found

    message = next_answer().choices[0].message
    asked.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls:
        asked.append({"role": "tool", "tool_call_id": call.id, "content": "Rain in Rome."})
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls]
    return {"calls": calls, **told(next_answer())}


def streamed_tools(provider):
    return tools(provider, stream=True)


def error(provider):
    """Class of the error for a model that does not exist."""
    try:
        litellm.completion(
            model=f"{provider}/nobody", api_base=base_url if provider == "openai" else host, api_key="unused",
            messages=QUESTION, max_tokens=8, num_retries=0,
        )
    except Exception as refused:
        return {"class": type(refused).__name__, "status": getattr(refused, "status_code", None)}
    return {"class": None}


for step in sys.argv[3:]:
    provider, what = step.split(":")
    print(json.dumps({"step": step, **globals()[what](provider)}), flush=True)
