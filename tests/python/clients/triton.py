"""NVIDIA's official client of the Open Inference protocol against a gateway: HTTP with binary tensors, and gRPC.

Arguments: HTTP_ADDRESS GRPC_ADDRESS of MLServer, HTTP_ADDRESS of binary_tensors.py, each HOST:PORT, and `translated` where the
gateway translates between the transports: answers are shorter then, and there are no streams. Prints one JSON object for each thing
that was tried. Exits with an error as soon as the client rejects anything.
"""

import json
import sys

import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

MODEL = "doubler"
# Longer than what one frame, window or buffer on the way holds.
LARGE = numpy.arange(1_500_000, dtype=numpy.float32).reshape(1500, 1000)
TRANSLATED = sys.argv[4:] == ["translated"]
if TRANSLATED:
    LARGE = LARGE[:200]
NUMBERS = numpy.array([[1, -2, 2**31]], dtype=numpy.int64)
TEXTS = numpy.array([b"abc", "Zürich".encode()], dtype=object)


def tell(**facts):
    print(json.dumps(facts), flush=True)


def inputs(api, of, **how):
    given = []
    for name, array, kind in of:
        one = api.InferInput(name, list(array.shape), kind)
        one.set_data_from_numpy(array, **how)
        given.append(one)
    return given


def doubled(result, name, array):
    return bool(numpy.array_equal(result.as_numpy(name), array * 2))


http = tritonclient.http.InferenceServerClient(sys.argv[1], concurrency=4, network_timeout=60, connection_timeout=10)
tell(http="health", live=http.is_server_live(), ready=http.is_server_ready(), model=http.is_model_ready(MODEL))
tell(http="metadata", name=http.get_model_metadata(MODEL)["name"], server=bool(http.get_server_metadata()["version"]))
wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=False) for name in ["numbers", "texts"]]
given = inputs(tritonclient.http, [("numbers", NUMBERS, "INT64"), ("texts", TEXTS, "BYTES")], binary_data=False)
for coding in [None, "gzip", "deflate"]:
    answer = http.infer(MODEL, given, outputs=wanted, request_id="7", response_compression_algorithm=coding)
    texts = ["".join(reversed(text)) for text in answer.as_numpy("texts").flatten()]
    sound = doubled(answer, "numbers", NUMBERS) and texts == [text.decode() for text in TEXTS]
    tell(http="json", coding=coding, sound=sound, id=answer.get_response()["id"])
tensors = tritonclient.http.InferenceServerClient(sys.argv[3], network_timeout=60, connection_timeout=10)
for coding in [None, "gzip", "deflate"]:
    given = inputs(tritonclient.http, [("numbers", NUMBERS, "INT64"), ("large", LARGE, "FP32")], binary_data=True)
    answer = tensors.infer(MODEL, given, request_compression_algorithm=coding, response_compression_algorithm=coding)
    sound = doubled(answer, "numbers", NUMBERS) and doubled(answer, "large", LARGE)
    tell(http="binary", coding=coding, sound=sound)
plain = tritonclient.http.InferRequestedOutput("n", binary_data=False)
many = [http.async_infer(MODEL, inputs(tritonclient.http, [("n", NUMBERS + n, "INT64")], binary_data=False), outputs=[plain]) for n in range(32)]
tell(http="async", sound=all(doubled(one.get_result(), "n", NUMBERS + n) for n, one in enumerate(many)))
try:
    http.infer("nobody", inputs(tritonclient.http, [("n", NUMBERS, "INT64")], binary_data=False))
except InferenceServerException as refused:
    tell(http="unknown model", status=refused.status(), told=bool(refused.message()))

grpc = tritonclient.grpc.InferenceServerClient(sys.argv[2])
tell(grpc="health", live=grpc.is_server_live(), ready=grpc.is_server_ready(), model=grpc.is_model_ready(MODEL))
tell(grpc="metadata", name=grpc.get_model_metadata(MODEL).name)
for name, array, kind in [("numbers", NUMBERS, "INT64"), ("large", LARGE, "FP32")]:
    answer = grpc.infer(MODEL, inputs(tritonclient.grpc, [(name, array, kind)]), client_timeout=60)
    tell(grpc="infer", input=name, sound=doubled(answer, name, array))
try:
    answer = grpc.infer(MODEL, inputs(tritonclient.grpc, [("numbers", NUMBERS, "INT64")]), compression_algorithm="gzip")
    tell(grpc="compressed", sound=doubled(answer, "numbers", NUMBERS))
except InferenceServerException as refused:
    # A message that is read must not be compressed.
    tell(grpc="compressed", sound=TRANSLATED and refused.status() == "StatusCode.UNIMPLEMENTED")
try:
    grpc.infer("nobody", inputs(tritonclient.grpc, [("n", NUMBERS, "INT64")]))
except InferenceServerException as refused:
    tell(grpc="unknown model", status=refused.status(), told=bool(refused.message()))
try:
    grpc.infer(MODEL, inputs(tritonclient.grpc, [("sleep", numpy.array([5.0], dtype=numpy.float32), "FP32")]), client_timeout=0.3)
except InferenceServerException as refused:
    tell(grpc="deadline", status=refused.status())
answer = grpc.infer(MODEL, inputs(tritonclient.grpc, [("numbers", NUMBERS, "INT64")]))
tell(grpc="after the deadline", sound=doubled(answer, "numbers", NUMBERS))
if TRANSLATED:
    sys.exit()
# A stream in both directions. MLServer writes its answers in another message than Triton, which the client cannot decode.
seen = []
grpc.start_stream(callback=lambda result, error: seen.append(result or error))
for _ in range(8):
    grpc.async_stream_infer(MODEL, inputs(tritonclient.grpc, [("n", NUMBERS, "INT64")]))
grpc.stop_stream()
tell(grpc="stream", answers=len(seen))
