"""Reference of llama.cpp for prompts: their tokens after the chat template, and the greedy answers.

Reads {"model", "prompts", "tokens"} as JSON on standard input; prints a JSON array in its last line, one object a
prompt: tokens, text, and for each step its text and the gap between the log probabilities of its two best tokens.
"""

import json
import sys
import urllib.request

import xllamacpp

order = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = order["model"]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = 1
params.n_ctx = 2048
params.cpuparams.n_threads = 2
params.n_gpu_layers = 0
server = xllamacpp.Server(params)


def post(path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


out = []
for prompt in order["prompts"]:
    messages = [{"role": "user", "content": prompt}]
    templated = post("/apply-template", {"messages": messages})["prompt"]
    tokens = post("/tokenize", {"content": templated, "add_special": False, "parse_special": True})["tokens"]
    answer = post("/v1/chat/completions", {"messages": messages, "max_tokens": order["tokens"], "temperature": 0,
                                           "logprobs": True, "top_logprobs": 2})
    choice = answer["choices"][0]
    steps = [{"text": step["token"],
              "gap": step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"]}
             for step in choice["logprobs"]["content"]]
    out.append({"tokens": tokens, "text": choice["message"]["content"], "steps": steps})
print()
print(json.dumps(out))
