"""Calls of a real gRPC client through the gateway. Usage: grpc_client.py ADDRESS. Writes a JSON line for each call: its name, the
messages that came, status, details and trailing metadata."""

import json
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Longest wait for a call, in seconds: a bound for a test that hangs. No status here comes from it.
PATIENCE = 50

channel = grpc.insecure_channel(sys.argv[1])


def tell(name, messages, code, details, trailing):
    trailing = {key: value.hex() if isinstance(value, bytes) else value for key, value in trailing or ()}
    line = {"name": name, "messages": messages, "code": code.name, "details": details, "trailing": trailing}
    print(json.dumps(line), flush=True)


def unary(name, method, request=b"abc", timeout=PATIENCE, key=None):
    metadata = (("authorization", f"Bearer {key}"),) if key else None
    call = channel.unary_unary(method).future(request, timeout=timeout, metadata=metadata)
    try:
        messages = [call.result().decode()]
    except grpc.RpcError:
        messages = []
    tell(name, messages, call.code(), call.details(), call.trailing_metadata())


def messages_of(call):
    messages = []
    try:
        for message in call:
            messages.append(message.decode())
    except grpc.RpcError:
        pass
    return messages


def stream(name, method, request, timeout=PATIENCE):
    call = channel.unary_stream(method)(request, timeout=timeout)
    messages = messages_of(call)
    tell(name, messages, call.code(), call.details(), call.trailing_metadata())


def upload(name, method, requests):
    call = channel.stream_unary(method).future(iter(requests), timeout=PATIENCE)
    try:
        messages = [call.result().decode()]
    except grpc.RpcError:
        messages = []
    tell(name, messages, call.code(), call.details(), call.trailing_metadata())


def chat(name, method, requests):
    call = channel.stream_stream(method)(iter(requests), timeout=PATIENCE)
    messages = messages_of(call)
    tell(name, messages, call.code(), call.details(), call.trailing_metadata())


def health(name, service):
    stub = health_pb2_grpc.HealthStub(channel)
    call = stub.Check.future(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
    try:
        messages = [health_pb2.HealthCheckResponse.ServingStatus.Name(call.result().status)]
    except grpc.RpcError:
        messages = []
    tell(name, messages, call.code(), call.details(), call.trailing_metadata())


# What works.
unary("unary", "/open.Echo/Unary")
unary("unary-empty", "/open.Echo/Unary", b"")
unary("unary-long", "/open.Echo/Unary", b"x" * 200_000)
stream("stream", "/open.Echo/Stream", b"3")
stream("stream-empty", "/open.Echo/Stream", b"0")
upload("upload", "/open.Echo/Upload", [b"abc"] * 100)
upload("upload-empty", "/open.Echo/Upload", [])
chat("chat", "/open.Echo/Chat", [b"a", b"", b"c"])
health("health", "open.Echo")
health("health-not", "closed.Echo")

# What the server itself says.
for code in range(1, 17):
    unary(f"own-{code}", "/open.Echo/Fail", f"{code} né 100%".encode())
    stream(f"own-stream-{code}", "/open.Echo/Stream", f"2 {code} né 100%".encode())
    stream(f"own-empty-{code}", "/open.Echo/Stream", f"0 {code} né 100%".encode())
health("own-health", "nobody.Knows")
unary("own-method", "/open.Echo/Nothing")

# What the gateway says.
for name, method in [
    ("unauthenticated", "/closed.Echo"),
    ("denied", "/denied.Echo"),
    ("unknown", "/unknown.Echo"),
    ("small", "/small.Echo"),
    ("dead", "/dead.Echo"),
    ("invalid", "/invalid.Echo"),
]:
    unary(f"{name}-unary", f"{method}/Unary", b"x" * 100)
    stream(f"{name}-stream", f"{method}/Stream", b"2" + b" " * 100)
    upload(f"{name}-upload", f"{method}/Upload", [b"abc"] * 100)
    chat(f"{name}-chat", f"{method}/Chat", [b"abc"] * 100)
unary("key", "/closed.Echo/Unary", key="test")
unary("key-spent", "/closed.Echo/Unary", key="test")
unary("too-big", "/open.Echo/Big")
unary("late", "/quick.Echo/Slow")
stream("late-stream", "/quick.Echo/Stream", b"2 hang")
unary("respond", "/respond.Echo/Unary")

# A slot is taken while a stream is open.
holds = channel.unary_stream("/full.Echo/Stream")(b"1 hang", timeout=PATIENCE)
next(holds)
unary("full", "/full.Echo/Unary")
unary("full-429", "/full-429.Echo/Unary")
holds.cancel()

# The time of the caller.
unary("time", "/open.Echo/Left", timeout=20)
unary("time-none", "/open.Echo/Left", timeout=None)
unary("time-route", "/brief.Echo/Left", timeout=2000)

# Last, because it ends the server.
stream("died", "/open.Echo/Stream", b"2 die")
