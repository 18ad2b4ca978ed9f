"""Server of the Open Inference protocol with its extension for binary tensors, which MLServer does not have over HTTP. Answers
with its inputs, doubled. Bodies may be compressed both ways.

Usage: binary_tensors.py PORT. Prints `listening` once it serves.
"""

import gzip
import json
import sys
import zlib

import numpy
import uvicorn
from tritonclient.utils import triton_to_np_dtype

DECODERS = {"gzip": gzip.decompress, "deflate": zlib.decompress}
ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress}


def infer(headers, body):
    body = DECODERS.get(headers.get("content-encoding"), bytes)(body)
    length = int(headers.get("inference-header-content-length", len(body)))
    asked, rest = json.loads(body[:length]), body[length:]
    outputs, tail = [], b""
    for tensor in asked["inputs"]:
        kind = triton_to_np_dtype(tensor["datatype"])
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = numpy.array(tensor["data"], dtype=kind)
        else:
            array, rest = numpy.frombuffer(rest[:size], dtype=kind), rest[size:]
        doubled = (array * 2).astype(kind).tobytes()
        tail += doubled
        outputs.append({**tensor, "data": None, "parameters": {"binary_data_size": len(doubled)}})
        del outputs[-1]["data"]
    assert not rest, f"{len(rest)} bytes belong to no input"
    head = json.dumps({"model_name": "doubler", "id": asked.get("id", ""), "outputs": outputs}).encode()
    more = [(b"inference-header-content-length", str(len(head)).encode())]
    answer = head + tail
    coding = headers.get("accept-encoding", "").split(",")[0].strip()
    if coding in ENCODERS:
        answer = ENCODERS[coding](answer)
        more.append((b"content-encoding", coding.encode()))
    return answer, more


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    body, is_more = b"", True
    while is_more:
        part = await receive()
        body, is_more = body + part.get("body", b""), part.get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    answer, more = infer(headers, body)
    head = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(answer)).encode()), *more]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": answer})


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        print("listening", flush=True)


if __name__ == "__main__":
    config = uvicorn.Config(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off")
    Server(config).run()
