"""LlamaIndex's OpenAI-like model and embeddings against a gateway. Prints one JSON object a step.

Arguments: BASE_URL MODEL CALLER EMBEDDER, where CALLER calls tools. The base URL ends in `/v1`.
"""

import json
import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

base_url, model, caller, embedder = sys.argv[1:5]
more = {"api_base": base_url, "api_key": "unused", "max_retries": 0}
QUESTION = "What is the capital of France? Answer in one sentence."


def tell(**facts):
    print(json.dumps(facts), flush=True)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def made(model, **further):
    asked = {"context_window": 512, "is_chat_model": True, "temperature": 0, "max_tokens": 64}
    return OpenAILike(model=model, **{**asked, **more, **further})


llm = made(model)
asked = [ChatMessage(role="user", content=QUESTION)]
tell(text=llm.chat(asked).message.content)
parts = list(llm.stream_chat(asked))
tell(text=parts[-1].message.content, parts=sum(bool(part.delta) for part in parts))
text = made(model, is_chat_model=False, max_tokens=4)
tell(text=text.complete("The capital of France is").text)

llm = made(caller, is_function_calling_model=True)
tool = FunctionTool.from_defaults(weather)
answer = llm.chat_with_tools([tool], user_msg="What is the weather in Rome?", tool_required=True)
calls = llm.get_tool_calls_from_response(answer)
tell(calls=[[call.tool_name, sorted(call.tool_kwargs)] for call in calls])

embed = OpenAILikeEmbedding(model_name=embedder, **more)
tell(vectors=[len(vector) for vector in embed.get_text_embedding_batch(["a red fox", "a blue whale"])],
     query=len(embed.get_query_embedding("an animal")))
