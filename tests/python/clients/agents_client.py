"""An agent of OpenAI's Agents SDK with a tool, whole and streamed, through a gateway. Prints one JSON object a run.

Arguments: BASE_URL MODEL API, where API is `chat` (Chat Completions) or `responses` (the SDK's own choice), and `stop` where the
run is over with the tool's result.
"""

import asyncio
import json
import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from agents import set_tracing_disabled
from openai import AsyncOpenAI

base_url, name, api = sys.argv[1:4]
stops = "stop" in sys.argv[4:]
asked = []


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    asked.append(city)
    return f"Rain in {city}, 12 degrees."


def agent(**settings):
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120)
    kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
    return Agent(
        name="guide",
        instructions="Answer in one sentence.",
        model=kind(model=name, openai_client=client),
        model_settings=ModelSettings(temperature=0, max_tokens=64, **settings),
        tools=[weather],
        tool_use_behavior="stop_on_first_tool" if stops else "run_llm_again",
    )


def usage(run):
    total = run.context_wrapper.usage
    return {"requests": total.requests, "input": total.input_tokens, "output": total.output_tokens}


async def main():
    question = "What will the weather be in Rome?"
    settings = {"tool_choice": "required"} if stops else {}
    whole = await Runner.run(agent(**settings), question, max_turns=4)
    print(json.dumps({"run": "whole", "output": whole.final_output, "asked": asked, "usage": usage(whole)}), flush=True)
    asked.clear()
    run = Runner.run_streamed(agent(**settings, include_usage=True), question, max_turns=4)
    deltas, items = [], []
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            deltas.append(event.data.delta)
        elif event.type == "run_item_stream_event":
            items.append(event.item.type)
    told = {"run": "streamed", "output": run.final_output, "text": "".join(deltas), "parts": len(deltas), "items": items}
    print(json.dumps({**told, "asked": asked, "usage": usage(run)}), flush=True)


set_tracing_disabled(True)
asyncio.run(main())
