"""HTTP server of the Open Inference Protocol for tests: answers with its inputs, in binary where the call asks for it, as servers
with the extension for binary tensors do. A call with an input `absent` finds no model; one with `sleep` waits so many seconds.
Writes `listening on PORT` and ends with its standard input.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

LENGTH = "Inference-Header-Content-Length"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}


def binary_of(tensor):
    """Elements of a tensor whose data are JSON."""
    if tensor["datatype"] == "BYTES":
        array = numpy.array([text.encode() for text in tensor["data"]], dtype=object)
        return serialize_byte_tensor(array).item() if array.size else b""
    return numpy.array(tensor["data"], dtype=triton_to_np_dtype(tensor["datatype"])).tobytes()


def json_of(datatype, data):
    if datatype == "BYTES":
        return [text.decode() for text in deserialize_bytes_tensor(data)]
    return numpy.frombuffer(data, dtype=triton_to_np_dtype(datatype)).tolist()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value, tail=b""):
        head = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if tail else "application/json")
        if tail:
            self.send_header(LENGTH, str(len(head)))
        self.send_header("Content-Length", str(len(head) + len(tail)))
        # Neither is metadata of gRPC, whose clients would fail.
        self.send_header("X-Odd-Bin", "no base64!")
        self.send_header("X-Odd-Text", "n\u00e9")
        self.end_headers()
        self.wfile.write(head + tail)

    def do_GET(self):
        states = {"/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}
        model = {"name": "theirs", "versions": ["2"], "platform": "echo", "inputs": [TENSOR], "outputs": [TENSOR]}
        if self.path == "/v2":
            self.answer(200, {"name": "scripted", "version": "1.2", "extensions": ["binary_tensor_data"]})
        elif self.path in states:
            self.answer(200, states[self.path])
        elif self.path.endswith("/versions/9/ready"):
            self.answer(400, {"error": "not ready"})
        elif self.path.endswith("/ready"):
            self.answer(200, {"name": "theirs", "ready": True})
        elif self.path == "/v2/models/theirs":
            self.answer(200, model)
        else:
            self.answer(404, {"error": f"no path {self.path}"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers.get(LENGTH, len(body)))
        asked, rest = json.loads(body[:length]), body[length:]
        parts = self.path.split("/")
        version = parts[5] if parts[4] == "versions" else ""
        parameters = asked.get("parameters", {})
        is_binary = parameters.pop("binary_data_output", False)
        wanted = {output["name"] for output in asked.get("outputs", [])}
        outputs, tail = [], b""
        for tensor in asked.get("inputs", []):
            size = tensor.get("parameters", {}).get("binary_data_size")
            data, rest = (binary_of(tensor), rest) if size is None else (rest[:size], rest[size:])
            if tensor["name"] == "absent":
                return self.answer(404, {"error": "no such model: né"})
            if tensor["name"] == "sleep":
                time.sleep(tensor["data"][0])
            if wanted and tensor["name"] not in wanted:
                continue
            output = {key: tensor[key] for key in ["name", "datatype", "shape"]}
            if is_binary:
                output["parameters"] = {"binary_data_size": len(data)}
                tail += data
            else:
                output["data"] = json_of(tensor["datatype"], data)
            outputs.append(output)
        answer = {"model_name": parts[3], "model_version": version, "id": asked.get("id", ""), "parameters": parameters}
        self.answer(200, {**answer, "outputs": outputs}, tail)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"listening on {server.server_port}", flush=True)
sys.stdin.read()
