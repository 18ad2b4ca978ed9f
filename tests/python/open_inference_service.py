"""gRPC server of the Open Inference Protocol for tests: answers with the model that it was asked for and its own port. The
model `full` has no room, `down` is unavailable and `failed` fails, at the server whose port the header `x-first` names. Writes
`listening on PORT` and ends with its standard input.
"""

import sys
import warnings
from concurrent import futures

warnings.filterwarnings("ignore")

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

FAULTS = {"full": grpc.StatusCode.RESOURCE_EXHAUSTED, "down": grpc.StatusCode.UNAVAILABLE, "failed": grpc.StatusCode.INTERNAL}


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    port = 0

    def answer(self, request):
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.parameters["port"].string_param = str(self.port)
        answer.parameters["asked"].string_param = request.model_name
        answer.raw_output_contents.extend(request.raw_input_contents)
        return answer

    def ModelInfer(self, request, context):
        faulty = dict(context.invocation_metadata()).get("x-first")
        if request.model_name in FAULTS and faulty == str(self.port):
            context.abort(FAULTS[request.model_name], "as the test wants it")
        return self.answer(request)

    def ModelStreamInfer(self, requests, context):
        for request in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self.answer(request))

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name != "absent")

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)


server = grpc.server(futures.ThreadPoolExecutor(8))
service = Service()
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
service.port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on {service.port}", flush=True)
sys.stdin.read()
