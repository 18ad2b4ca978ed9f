"""Several tool calls of a built-in model in one answer, by the official clients of four APIs; prints one JSON object for each.

The model is small: it writes two calls because the conversation shows two answers with the same calls before.

Usage: several_calls.py BASE_URL MODEL, where BASE_URL ends in /v1.
"""

import json
import sys

from anthropic import Anthropic
from ollama import Client
from openai import OpenAI

base, model = sys.argv[1:]
root = base.removesuffix("/v1")
QUESTION = "What is the weather in Paris and in Rome?"
CITIES = ["Paris", "Rome"]
ROUNDS = 2
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
described = {"name": "weather", "description": "Weather of a city", "parameters": parameters}


def tell(api, whole, streamed):
    print(json.dumps({"api": api, "whole": whole, "streamed": streamed}), flush=True)


def arguments_of(texts):
    return [json.loads(text) for text in texts]


def chat():
    client = OpenAI(base_url=base, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": QUESTION}]
    for number in range(ROUNDS):
        calls = [{"id": f"call_{number}{city}", "type": "function",
                  "function": {"name": "weather", "arguments": json.dumps({"city": city})}} for city in CITIES]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "Rain."} for call in calls]
        messages.append({"role": "user", "content": QUESTION})
    asked = {"model": model, "messages": messages, "tools": [{"type": "function", "function": described}],
             "temperature": 0, "max_tokens": 90}
    whole = client.chat.completions.create(**asked).choices[0]
    joined, reason = {}, None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                joined[call.index] = joined.get(call.index, "") + (call.function.arguments or "")
    assert whole.finish_reason == reason == "tool_calls", (whole, reason)
    tell("chat", arguments_of(call.function.arguments for call in whole.message.tool_calls),
         arguments_of(joined[index] for index in sorted(joined)))


def responses():
    client = OpenAI(base_url=base, api_key="none", max_retries=0)
    items = [{"role": "user", "content": QUESTION}]
    for number in range(ROUNDS):
        items += [{"type": "function_call", "call_id": f"call_{number}{city}", "name": "weather",
                   "arguments": json.dumps({"city": city})} for city in CITIES]
        items += [{"type": "function_call_output", "call_id": f"call_{number}{city}", "output": "Rain."}
                  for city in CITIES]
        items.append({"role": "user", "content": QUESTION})
    asked = {"model": model, "input": items, "tools": [{"type": "function", **described}], "temperature": 0,
             "max_output_tokens": 90}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    calls = lambda answer: arguments_of(item.arguments for item in answer.output if item.type == "function_call")
    tell("responses", calls(whole), calls(streamed))


def messages():
    client = Anthropic(base_url=root, api_key="none", max_retries=0)
    question = {"type": "text", "text": QUESTION}
    turns = [{"role": "user", "content": [question]}]
    for number in range(ROUNDS):
        turns.append({"role": "assistant", "content": [
            {"type": "tool_use", "id": f"call_{number}{city}", "name": "weather", "input": {"city": city}}
            for city in CITIES]})
        results = [{"type": "tool_result", "tool_use_id": f"call_{number}{city}", "content": "Rain."} for city in CITIES]
        turns.append({"role": "user", "content": [*results, question]})
    asked = {"model": model, "messages": turns, "max_tokens": 90, "extra_body": {"temperature": 0},
             "tools": [{"name": "weather", "description": described["description"], "input_schema": parameters}]}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "tool_use", (whole, streamed)
    calls = lambda answer: [block.input for block in answer.content if block.type == "tool_use"]
    tell("messages", calls(whole), calls(streamed))


def ollama():
    client = Client(host=root)
    turns = [{"role": "user", "content": QUESTION}]
    for _ in range(ROUNDS):
        calls = [{"function": {"name": "weather", "arguments": {"city": city}}} for city in CITIES]
        turns.append({"role": "assistant", "content": "", "tool_calls": calls})
        turns += [{"role": "tool", "tool_name": "weather", "content": "Rain."} for _ in CITIES]
        turns.append({"role": "user", "content": QUESTION})
    asked = {"model": model, "messages": turns, "tools": [{"type": "function", "function": described}],
             "options": {"temperature": 0, "num_predict": 90}}
    calls = lambda message: [dict(call.function.arguments) for call in message.tool_calls or []]
    whole = client.chat(**asked)
    streamed = [call for part in client.chat(**asked, stream=True) for call in calls(part.message)]
    tell("ollama", calls(whole.message), streamed)


for api in [chat, responses, messages, ollama]:
    api()
