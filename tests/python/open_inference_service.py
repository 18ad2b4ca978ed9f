"""gRPC server of the Open Inference Protocol for tests: answers with its inputs, the model that it was asked for and its own
port. The model `full` has no room, `down` is unavailable and `failed` fails, at the server whose port the header `x-first` names;
`absent` is not there, and a call with an input `sleep` waits so many seconds, or until it is cancelled. Writes `listening on PORT`
and ends with its standard input.
"""

import sys
import threading
import warnings
from concurrent import futures

warnings.filterwarnings("ignore")

import grpc
import numpy
from tritonclient.grpc import service_pb2, service_pb2_grpc

FAULTS = {"full": grpc.StatusCode.RESOURCE_EXHAUSTED, "down": grpc.StatusCode.UNAVAILABLE, "failed": grpc.StatusCode.INTERNAL}
TENSOR = service_pb2.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1, 3])


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    port = 0
    cancelled = threading.Event()

    def answer(self, request):
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
        answer.parameters["port"].string_param = str(self.port)
        answer.parameters["asked"].string_param = request.model_name
        for name, value in request.parameters.items():
            answer.parameters[name].CopyFrom(value)
        wanted = {output.name for output in request.outputs}
        for n, tensor in enumerate(request.inputs):
            if wanted and tensor.name not in wanted:
                continue
            output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if request.raw_input_contents:
                answer.raw_output_contents.append(request.raw_input_contents[n])
            else:
                output.contents.CopyFrom(tensor.contents)
        return answer

    def ModelInfer(self, request, context):
        faulty = dict(context.invocation_metadata()).get("x-first")
        if request.model_name in FAULTS and faulty == str(self.port):
            context.abort(FAULTS[request.model_name], "as the test wants it")
        if request.inputs and request.inputs[0].name == "cancelled":
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            answer.outputs.add(name="cancelled", datatype="BOOL", shape=[1])
            answer.raw_output_contents.append(bytes([self.cancelled.wait(30)]))
            return answer
        if request.inputs and request.inputs[0].name == "absent":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model: né")
        if request.inputs and request.inputs[0].name == "sleep":
            context.add_callback(self.cancelled.set)
            self.cancelled.wait(float(numpy.frombuffer(request.raw_input_contents[0], dtype=numpy.float32)[0]))
        # As a header of the gateway's answer over HTTP, it would say where the JSON ends.
        context.send_initial_metadata((("inference-header-content-length", "5"),))
        answer = self.answer(request)
        got = sorted(f"{name}={value}" for name, value in context.invocation_metadata() if name.startswith("x-sent"))
        answer.parameters["metadata"].string_param = " ".join(got)
        return answer

    def ModelStreamInfer(self, requests, context):
        for request in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self.answer(request))

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.version != "9")

    def ModelMetadata(self, request, context):
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["2"], platform="echo", inputs=[TENSOR], outputs=[TENSOR])

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="scripted", version="1.2", extensions=["binary_tensor_data"])

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)


options = [("grpc.max_receive_message_length", 64 << 20)]
# Where the caller reads compressed messages, it gets them.
server = grpc.server(futures.ThreadPoolExecutor(8), options=options, compression=grpc.Compression.Gzip)
service = Service()
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
service.port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on {service.port}", flush=True)
sys.stdin.read()
