"""NVIDIA's official client before servers of the other transport (open_inference_http.py, open_inference_service.py).

Arguments: the gateway's /v1 URL (not used), then HTTP_ADDRESS and GRPC_ADDRESS of the gateway, or `faults` and GRPC_ADDRESS.
Prints a JSON line for each observation.
"""

import json
import queue
import sys
import warnings

warnings.filterwarnings("ignore")

import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

RANDOM = numpy.random.default_rng(7)
LARGE = numpy.arange(600_000, dtype=numpy.float32).reshape(600, 1000) / 7
TEXTS = numpy.array([b"", "Zürich\n\"é\\".encode(), b"x" * 300], dtype=object)


def tell(name, **facts):
    print(json.dumps({"name": name, **facts}), flush=True)


def integers(kind):
    info = numpy.iinfo(kind)
    return numpy.array([[info.min, info.max, 1], [0, 2, 3]], dtype=kind)


def floats(kind):
    info = numpy.finfo(kind)
    return numpy.array([[info.min, info.max, info.tiny], [0, -0.1, 1 / 3]], dtype=kind)


ARRAYS = {
    "BOOL": numpy.array([[True, False, True]]),
    **{name: integers(name.lower()) for name in ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]},
    "FP16": floats("float16"),
    "FP32": floats("float32"),
    "FP64": floats("float64"),
    "BYTES": TEXTS,
}


def tensor(api, name, kind, array, **how):
    one = api.InferInput(name, list(array.shape), kind)
    one.set_data_from_numpy(array, **how)
    return one


def contents(tensor, kind):
    """Typed contents of a tensor, which the client neither writes nor reads by itself."""
    field = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
    return getattr(tensor.contents, field.get(kind, "uint" if kind[0] == "U" else "int") + "_contents")


def typed(name, kind, array):
    one = tritonclient.grpc.InferInput(name, list(array.shape), kind)
    contents(one._get_tensor(), kind).extend(array.flatten().tolist())
    return one


def told_array(answer, kind, how, array):
    """Output of an answer in the form of the array that it must equal."""
    if how == "typed":
        message = answer.get_response()
        assert not message.raw_output_contents
        return numpy.array(list(contents(message.outputs[0], kind)), dtype=array.dtype).reshape(array.shape)
    got = answer.as_numpy("x")
    # The client leaves texts of JSON as they are.
    return numpy.array([text.encode() for text in got], dtype=object) if kind == "BYTES" and how == "json" else got


def refused(call):
    try:
        call()
    except InferenceServerException as refusal:
        return {"status": refusal.status(), "message": refusal.message()}
    return {"status": "none"}


def common(way, client, api, variants):
    tell(f"{way} states", holds=[client.is_server_live(), client.is_server_ready(), client.is_model_ready("ours"), client.is_model_ready("ours", "9")])
    as_json = {"as_json": True} if api is tritonclient.grpc else {}
    tell(f"{way} metadata", server=client.get_server_metadata(**as_json), model=client.get_model_metadata("ours", **as_json))
    wrong = []
    for kind, array in ARRAYS.items():
        for how, (make, outputs) in variants.items():
            if kind == "FP16" and how in ("json", "typed"):
                continue
            answer = client.infer("ours", [make("x", kind, array)], outputs=outputs())
            got = told_array(answer, kind, how, array)
            if not numpy.array_equal(got, array):
                wrong.append([kind, how, str(got)])
    nan = numpy.array([numpy.nan, numpy.inf], dtype=numpy.float32)
    answer = client.infer("ours", [tensor(api, "x", "FP32", nan)])
    if not numpy.array_equal(answer.as_numpy("x"), nan, equal_nan=True):
        wrong.append(["FP32", "nan"])
    raw = numpy.array([b"\xff\x00"], dtype=object)
    if client.infer("ours", [tensor(api, "x", "BYTES", raw)]).as_numpy("x")[0] != b"\xff\x00":
        wrong.append(["BYTES", "no text"])
    tell(f"{way} every datatype", wrong=wrong)
    given = [tensor(api, name, "INT32", numpy.array([n], dtype=numpy.int32)) for n, name in enumerate("ab")]
    parameters = {"flag": True, "number": -7, "text": "né"}
    answer = client.infer("ours", given, model_version="2", outputs=[api.InferRequestedOutput("b")], request_id="id-7", parameters=parameters)
    told = answer.get_response(**as_json)
    echoed = {name: value for name, value in told["parameters"].items() if name in parameters}
    if as_json:
        echoed = {name: next(iter(value.values())) for name, value in echoed.items()}
        echoed["number"] = int(echoed["number"])
    tell(f"{way} facts", id=told["id"], model=told["model_name"], version=told["model_version"],
         outputs=[output["name"] for output in told["outputs"]], echoed=echoed)
    answer = client.infer("ours", [tensor(api, "x", "FP32", LARGE)])
    tell(f"{way} large", sound=bool(numpy.array_equal(answer.as_numpy("x"), LARGE)))
    absent = tensor(api, "absent", "INT8", numpy.array([1], dtype=numpy.int8))
    tell(f"{way} unknown model", **refused(lambda: client.infer("ours", [absent])))


def over_http(address):
    api = tritonclient.http
    client = api.InferenceServerClient(address, network_timeout=60, connection_timeout=10)
    variants = {
        "json": (lambda *of: tensor(api, *of, binary_data=False), lambda: [api.InferRequestedOutput("x", binary_data=False)]),
        "binary": (lambda *of: tensor(api, *of, binary_data=True), lambda: None),
        "mixed": (lambda *of: tensor(api, *of, binary_data=True), lambda: [api.InferRequestedOutput("x", binary_data=True)]),
    }
    common("to grpc", client, api, variants)
    half = tensor(api, "x", "FP16", ARRAYS["FP16"])
    plain = [api.InferRequestedOutput("x", binary_data=False)]
    tell("to grpc half as json", **refused(lambda: client.infer("ours", [half], outputs=plain)))
    answer = client.infer("ours", [tensor(api, "x", "FP32", LARGE)], request_compression_algorithm="gzip")
    tell("to grpc compressed", sound=bool(numpy.array_equal(answer.as_numpy("x"), LARGE)))
    sent = {"x-sent-bin": "hello", "x-sent-2-bin": "aGk", "x-sent-3-bin": "aGk=", "x-sent-4-bin": "aGk, aGk=", "x-sent": "text", "x-sent!": "name"}
    answer = client.infer("ours", [tensor(api, "x", "INT8", numpy.array([1], dtype=numpy.int8))], headers=sent)
    tell("to grpc headers", got=answer.get_response()["parameters"]["metadata"])
    sleep = tensor(api, "sleep", "FP32", numpy.array([30], dtype=numpy.float32))
    late = refused(lambda: client.infer("ours", [sleep], headers={"x-late": "1"}))
    told = client.infer("ours", [tensor(api, "cancelled", "INT8", numpy.array([1], dtype=numpy.int8))])
    tell("to grpc late", **late, cancelled=bool(told.as_numpy("cancelled")[0]))


def over_grpc(address):
    api = tritonclient.grpc
    client = api.InferenceServerClient(address)
    variants = {"raw": (lambda *of: tensor(api, *of), lambda: None), "typed": (typed, lambda: None)}
    common("to http", client, api, variants)
    for coding in ["gzip", "deflate"]:
        answer = client.infer("ours", [tensor(api, "x", "FP32", LARGE)], compression_algorithm=coding)
        tell(f"to http in {coding}", sound=bool(numpy.array_equal(answer.as_numpy("x"), LARGE)))
    sleep = tensor(api, "sleep", "FP32", numpy.array([30], dtype=numpy.float32))
    tell("to http late", **refused(lambda: client.infer("ours", [sleep], client_timeout=1)))
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error))
    try:
        client.async_stream_infer("ours", [tensor(api, "x", "INT8", numpy.array([1], dtype=numpy.int8))])
    except InferenceServerException:
        pass  # The stream has ended: its error is among the answers.
    error = answers.get(timeout=60)
    tell("to http stream", status=error.status(), message=error.message())


if sys.argv[2] == "faults":
    client = tritonclient.grpc.InferenceServerClient(sys.argv[3])
    given = [tensor(tritonclient.grpc, "x", "INT8", numpy.array([1], dtype=numpy.int8))]
    for model in ["m", "short", "failed"]:
        try:
            answer = client.infer(model, given).get_response()
            tell(model, outputs=[output.name for output in answer.outputs])
        except InferenceServerException as refusal:
            tell(model, status=refusal.status(), message=refusal.message())
else:
    over_http(sys.argv[2])
    over_grpc(sys.argv[3])
