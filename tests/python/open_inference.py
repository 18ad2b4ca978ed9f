"""NVIDIA's official client of the Open Inference Protocol against the built-in models of a gateway, over HTTP and gRPC.

Arguments: the gateway's /v1 URL (not used), HTTP_ADDRESS, GRPC_ADDRESS (each HOST:PORT), the names of an embedder, of an alias
of it and of a reranker. Prints a JSON line for each observation.
"""

import json
import sys
import warnings

warnings.filterwarnings("ignore")

import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

EMBEDDER, ALIAS, RERANKER = sys.argv[4:7]
TEXTS = ["a proxy passes requests on", "Zürich liegt am See", "a proxy passes requests on"]
DOCUMENTS = ["a cat sits on a mat", "a proxy is a server", "server"]


def tell(**facts):
    print(json.dumps(facts), flush=True)


def column(texts, shape):
    return numpy.array([text.encode() for text in texts], dtype=object).reshape(shape)


def tensor(api, name, array, **how):
    one = api.InferInput(name, list(array.shape), "BYTES")
    one.set_data_from_numpy(array, **how)
    return one


def refused(call):
    try:
        call()
    except InferenceServerException as refusal:
        return {"status": refusal.status(), "message": refusal.message()}
    return {"status": "none"}


def server(name, client, metadata):
    tell(name=f"{name} server", live=client.is_server_live(), ready=client.is_server_ready(),
         models=[client.is_model_ready(model) for model in (EMBEDDER, ALIAS, RERANKER)], metadata=metadata)


def vectors(name, client, api, variants):
    """All forms of the same call give the same vectors."""
    found = []
    for how, outputs, model, version, shape in variants:
        given = [tensor(api, "text", column(TEXTS, shape), **how)]
        answer = client.infer(model, given, model_version=version, outputs=outputs, request_id="7")
        found.append(answer.as_numpy("embedding"))
    first = found[0]
    tell(name=f"{name} vectors", shape=list(first.shape), kind=str(first.dtype),
         same=all(numpy.array_equal(first, other) for other in found),
         norms=[round(float(numpy.linalg.norm(row)), 4) for row in first],
         alike=bool(numpy.array_equal(first[0], first[2])), other=bool(numpy.array_equal(first[0], first[1])),
         values=[float(value) for value in first[0][:4]])


def scores(name, client, api, **how):
    given = [tensor(api, "query", column(["what is a proxy"], [1]), **how), tensor(api, "documents", column(DOCUMENTS, [3, 1]), **how)]
    answer = client.infer(RERANKER, given)
    tell(name=f"{name} scores", scores=[float(score) for score in answer.as_numpy("score")])


http = tritonclient.http.InferenceServerClient(sys.argv[2], network_timeout=120, connection_timeout=20)
server("http", http, http.get_server_metadata())
tell(name="http metadata", embedder=http.get_model_metadata(EMBEDDER), reranker=http.get_model_metadata(RERANKER, "1"))
api = tritonclient.http
output = api.InferRequestedOutput
vectors("http", http, api, [
    ({"binary_data": True}, None, EMBEDDER, "", [3]),
    ({"binary_data": False}, None, EMBEDDER, "1", [3, 1]),
    ({"binary_data": True}, [output("embedding", binary_data=False)], ALIAS, "", [3]),
    ({"binary_data": False}, [output("truncated", binary_data=True), output("embedding", binary_data=True)], EMBEDDER, "", [3]),
])
scores("http", http, api, binary_data=True)
texts = [tensor(api, "text", column(TEXTS, [3]))]
answer = http.infer(EMBEDDER, texts, request_id="x7", request_compression_algorithm="gzip", response_compression_algorithm="gzip")
tell(name="http coded", id=answer.get_response()["id"], model=answer.get_response()["model_name"], truncated=[bool(cut) for cut in answer.as_numpy("truncated")])
tell(name="http unknown model", **refused(lambda: http.infer("nobody", texts)))
tell(name="http unknown version", **refused(lambda: http.infer(EMBEDDER, texts, model_version="2")))
tell(name="http unknown input", **refused(lambda: http.infer(RERANKER, texts)))
tell(name="http repository", **refused(http.get_model_repository_index))
tell(name="http shared memory", **refused(lambda: http.register_system_shared_memory("r", "/r", 8)))

grpc = tritonclient.grpc.InferenceServerClient(sys.argv[3])
server("grpc", grpc, grpc.get_server_metadata(as_json=True))
tell(name="grpc metadata", embedder=grpc.get_model_metadata(EMBEDDER, as_json=True), reranker=grpc.get_model_metadata(RERANKER, "1", as_json=True))
api = tritonclient.grpc
vectors("grpc", grpc, api, [
    ({}, None, EMBEDDER, "", [3]),
    ({}, [api.InferRequestedOutput("embedding")], ALIAS, "1", [3, 1]),
])
scores("grpc", grpc, api)
stub, pb = grpc._client_stub, tritonclient.grpc.service_pb2
contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in TEXTS])
typed = pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[3], contents=contents)
answer = stub.ModelInfer(pb.ModelInferRequest(model_name=EMBEDDER, id="8", inputs=[typed]))
tell(name="grpc typed", id=answer.id, outputs=[one.name for one in answer.outputs], values=list(answer.outputs[0].contents.fp32_contents[:4]), cut=list(answer.outputs[1].contents.bool_contents), raw=len(answer.raw_output_contents))
texts = [tensor(api, "text", column(TEXTS, [3]))]
tell(name="grpc unknown model", **refused(lambda: grpc.infer("nobody", texts)))
tell(name="grpc unknown version", **refused(lambda: grpc.infer(EMBEDDER, texts, model_version="2")))
tell(name="grpc unknown input", **refused(lambda: grpc.infer(RERANKER, texts)))
tell(name="grpc compressed", **refused(lambda: grpc.infer(EMBEDDER, texts, compression_algorithm="gzip")))
tell(name="grpc repository", **refused(grpc.get_model_repository_index))
