"""NVIDIA's official client over gRPC against servers behind a gateway (open_inference_service.py).

Arguments: the gateway's /v1 URL (not used), GRPC_ADDRESS, then either nothing, for a stream, or a key of a consumer and the port
of the server whose models have faults. Prints a JSON line for each observation.
"""

import json
import queue
import sys
import warnings

warnings.filterwarnings("ignore")

import numpy
import tritonclient.grpc as api
from tritonclient.utils import InferenceServerException

NUMBERS = numpy.arange(50_000, dtype=numpy.float32).reshape(500, 100)
client = api.InferenceServerClient(sys.argv[2])


def tell(**facts):
    print(json.dumps(facts), flush=True)


def given():
    one = api.InferInput("x", list(NUMBERS.shape), "FP32")
    one.set_data_from_numpy(NUMBERS)
    return [one]


def infer(name, model, compression=None, **headers):
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    try:
        answer = client.infer(model, given(), request_id=name, headers=headers, compression_algorithm=compression).get_response()
    except InferenceServerException as refused:
        return {"name": name, "status": refused.status(), "message": refused.message()}
    sound = answer.id == name and answer.raw_output_contents[0] == NUMBERS.tobytes()
    told = {key: answer.parameters[key].string_param for key in ("port", "asked")}
    return {"name": name, "model": answer.model_name, "sound": sound, **told}


def stream(name, headers):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    models = []
    for n in range(3):
        # Each request waits for the answer to the one before it.
        try:
            client.async_stream_infer("m", given(), request_id=str(n))
        except InferenceServerException:
            pass  # The stream has ended: its error is among the answers.
        result, error = answers.get(timeout=60)
        if error is not None:
            return {"name": name, "status": error.status(), "message": error.message()}
        models.append(result.get_response().model_name)
    client.stop_stream()
    return {"name": name, "models": models}


if len(sys.argv) == 3:
    tell(**stream("stream", None))
else:
    key, port = sys.argv[3:5]
    tell(**infer("renamed", "bert"), ready=client.is_model_ready("bert"))
    tell(**infer("other", "resnet"))
    tell(**infer("allowed", "bert", x_api_key=key))
    tell(**infer("forbidden", "llama", x_api_key=key))
    for coding in ["gzip", "deflate"]:
        tell(**infer(f"renamed in {coding}", "bert", coding))
        tell(**infer(f"other in {coding}", "resnet", coding))
        tell(**infer(f"allowed in {coding}", "bert", coding, x_api_key=key))
        tell(**infer(f"forbidden in {coding}", "llama", coding, x_api_key=key))
    tell(name="health", live=client.is_server_live(headers={"x-api-key": key}))
    tell(**stream("stream with a rule", {"x-api-key": key}))
    for fault in ["failed", "full", "down"]:
        tell(**infer(fault, fault, x_first=port))
