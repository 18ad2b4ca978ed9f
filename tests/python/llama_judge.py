"""Runs calls of a llama.cpp server with one model, as reference for the engine.

Reads {"model", "context", "flash_attention", "embedding", "pooling", "calls": [[path, body], ...]} as JSON on standard input;
prints the answers as a JSON array in its last line.
"""

import json
import os
import sys
import urllib.request

# Waiting threads yield their core, because the engine runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import xllamacpp  # noqa: E402

order = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = order["model"]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = 1
params.n_ctx = order.get("context", 2048)
params.n_batch = params.n_ubatch = params.n_ctx
params.cpuparams.n_threads = 2
params.n_gpu_layers = 0
params.fit_params = False
if not order.get("flash_attention", True):
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if order.get("embedding"):
    params.embedding = True
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, "LLAMA_POOLING_TYPE_" + order["pooling"].upper())
server = xllamacpp.Server(params)


def post(path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


answers = [post(path, body) for path, body in order["calls"]]
print()
print(json.dumps(answers))
