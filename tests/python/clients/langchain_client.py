"""LangChain's models of three APIs against a gateway. Prints one JSON object a step.

Arguments: BASE_URL MODEL STEP..., where a step is API:WHAT, such as `openai:chat`. The base URL ends in `/v1`.
"""

import json
import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

base_url, model = sys.argv[1], sys.argv[2]
host = base_url.removesuffix("/v1")
QUESTION = "What is the capital of France? Answer in one sentence."


def made(api, **more):
    """Model of an API, without the client's own retries."""
    if api == "openai":
        # Before servers other than OpenAI's it asks for the usage of a stream only if told to.
        more.setdefault("stream_usage", True)
        return ChatOpenAI(base_url=base_url, api_key="unused", model=model, temperature=0, max_retries=0, **more)
    if api == "responses":
        return made("openai", use_responses_api=True, **more)
    if api == "anthropic":
        return ChatAnthropic(base_url=host, api_key="unused", model=model, max_retries=0, **{"max_tokens": 256, **more})
    more["num_predict"] = more.pop("max_tokens", 128)
    return ChatOllama(base_url=host, model=model, temperature=0, **more)


class Size(BaseModel):
    """Size of a city."""

    large: bool


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def told(message):
    usage = message.usage_metadata
    return {"text": message.text, "input": usage["input_tokens"], "output": usage["output_tokens"]}


def chat(api):
    return told(made(api, max_tokens=24).invoke(QUESTION))


def stream(api):
    parts = list(made(api, max_tokens=24).stream(QUESTION))
    whole = sum(parts[1:], parts[0])
    assert isinstance(whole, AIMessageChunk)
    return {**told(whole), "parts": sum(bool(part.text) for part in parts)}


def structured(api):
    methods = {"openai": "json_schema", "responses": "json_schema", "ollama": "json_schema", "anthropic": "function_calling"}
    found = made(api, max_tokens=64).with_structured_output(Size, method=methods[api]).invoke("Is Paris large?")
    return {"large": isinstance(found, Size) and isinstance(found.large, bool)}


def tools(api, streamed=False):
    """A question, the call of a tool, its result, an answer."""
    bound = made(api).bind_tools([weather])
    asked = [HumanMessage("What is the weather in Rome?")]

    def ask():
        if not streamed:
            return bound.invoke(asked)
        parts = list(bound.stream(asked))
        return sum(parts[1:], parts[0])

    first = ask()
    calls = [[call["name"], call["args"]] for call in first.tool_calls]
    asked += [first] + [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in first.tool_calls]
    return {"calls": calls, **told(ask())}


def streamed_tools(api):
    return tools(api, streamed=True)


def forced(api):
    """A call that the request forces, where the API can."""
    pick = {} if api == "ollama" else {"tool_choice": "weather"}
    message = made(api, max_tokens=64).bind_tools([weather], **pick).invoke("What is the weather in Rome?")
    return {"calls": [[call["name"], sorted(call["args"])] for call in message.tool_calls], "text": message.text}


def embed(api):
    if api == "ollama":
        found = OllamaEmbeddings(base_url=host, model=model).embed_documents(["a red fox", "a blue whale"])
    else:
        found = OpenAIEmbeddings(
            base_url=base_url, api_key="unused", model=model, check_embedding_ctx_length=False, max_retries=0
        ).embed_documents(["a red fox", "a blue whale"])
    return {"vectors": [len(vector) for vector in found]}


for step in sys.argv[3:]:
    api, what = step.split(":")
    print(json.dumps({"step": step, **globals()[what](api)}), flush=True)
