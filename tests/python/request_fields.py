"""Fields of requests, as the official clients know them; prints one JSON object: lists of names by API.

Usage: request_fields.py BASE_URL, of which nothing is used.
"""

import json

import ollama._types as ollama
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Message
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Completion
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming as Response


def named(typed):
    return sorted(typed.__required_keys__ | typed.__optional_keys__)


print(json.dumps({
    "chat": named(Completion),
    "responses": named(Response),
    "messages": named(Message),
    "ollamaChat": sorted(ollama.ChatRequest.model_fields),
    "ollamaGenerate": sorted(ollama.GenerateRequest.model_fields),
    "ollamaOptions": [f"options.{name}" for name in sorted(ollama.Options.model_fields)],
}))
