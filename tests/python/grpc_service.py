"""gRPC service of the tests: the last part of a method's path chooses what it does, whatever the service is called.
Messages are plain bytes. Writes `listening on PORT`."""

import os
import sys
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# Longest life of a call, in seconds: a bound for a test that hangs.
LONGEST = 60


def fail(text, context):
    """Ends the call as `CODE TEXT` says."""
    code, _, details = text.decode().partition(" ")
    context.set_trailing_metadata((("x-why", "because"), ("x-why-bin", b"\x00\xff")))
    by_number = {status.value[0]: status for status in grpc.StatusCode}
    context.abort(by_number[int(code)], details)


def wait(context):
    end = time.monotonic() + LONGEST
    while context.is_active() and time.monotonic() < end:
        time.sleep(0.02)


def unary(request, context):
    return request


def left(request, context):
    remaining = context.time_remaining()
    return b"none" if remaining is None or remaining > 1e9 else str(remaining).encode()


def big(request, context):
    context.send_initial_metadata((("x-big", "b" * 6000),))
    return request


def slow(request, context):
    wait(context)
    return request


def stream(request, context):
    """Sends as many messages as the first word says, then does what the second one says."""
    count, _, then = request.decode().partition(" ")
    for number in range(int(count)):
        yield str(number).encode()
    if then == "hang":
        wait(context)
    elif then == "die":
        # The messages are to be on their way.
        time.sleep(0.3)
        os._exit(1)
    elif then:
        fail(then.encode(), context)


def upload(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield request


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Left": grpc.unary_unary_rpc_method_handler(left),
    "Big": grpc.unary_unary_rpc_method_handler(big),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}


class Methods(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return METHODS.get(handler_call_details.method.rsplit("/", 1)[-1])


def main():
    # Health checks are found first.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    checks = health.HealthServicer()
    checks.set("open.Echo", health_pb2.HealthCheckResponse.SERVING)
    checks.set("closed.Echo", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_generic_rpc_handlers((Methods(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on {port}", flush=True)
    # Ends with the test, which holds the other end of the input.
    sys.stdin.read()
    server.stop(0)


main()
