"""External processor of the tests, with Envoy's own messages (xds-protos). The header `x-script` of a request says in JSON what is
answered to each message, by the name of its field; without it everything passes. Writes `listening on PORT`; at the end of each
conversation, what it saw goes to the file that the first argument names, as a line of JSON. With two further arguments, files with a
certificate and its key, it speaks TLS."""

import json
import pathlib
import sys
import threading
import time
from concurrent import futures

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc
from envoy.type.v3 import http_status_pb2

LOCK = threading.Lock()


def option(name, value, **more):
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=name, raw_value=value.encode()), **more)


def mutation(word):
    set_headers = [option(name, value) for name, value in word.get("set", {}).items()]
    append = base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
    for name, value in word.get("append", {}).items():
        added = option(name, value, append_action=append)
        added.append.value = True
        set_headers.append(added)
    absent = base_pb2.HeaderValueOption.ADD_IF_ABSENT
    set_headers += [option(name, value, append_action=absent) for name, value in word.get("add_if_absent", {}).items()]
    return ext.HeaderMutation(set_headers=set_headers, remove_headers=word.get("remove", []))


def common(word, body=b""):
    change = None
    if "body" in word:
        change = ext.BodyMutation(body=word["body"].encode())
    elif word.get("clear"):
        change = ext.BodyMutation(clear_body=True)
    elif word.get("upper"):
        change = ext.BodyMutation(body=body.upper())
    status = ext.CommonResponse.CONTINUE_AND_REPLACE if word.get("replace") else ext.CommonResponse.CONTINUE
    return ext.CommonResponse(status=status, header_mutation=mutation(word), body_mutation=change)


def streamed(body, ends):
    change = ext.BodyMutation(streamed_response=ext.StreamedBodyResponse(body=body, end_of_stream=ends))
    return ext.CommonResponse(body_mutation=change)


def headers_of(message):
    return {header.key: header.raw_value.decode() for header in message.headers.headers}


class Processor(external_processor_pb2_grpc.ExternalProcessorServicer):
    def __init__(self, log):
        self.log = log

    def Process(self, requests, context):
        script, seen = {}, []
        try:
            yield from self.answers(requests, context, script, seen)
        finally:
            with LOCK, open(self.log, "a", encoding="utf-8") as out:
                out.write(json.dumps(seen) + "\n")

    def answers(self, requests, context, script, seen):
        held = {"request_body": b"", "response_body": b""}
        late_headers = False
        for request in requests:
            kind = request.WhichOneof("request")
            message = getattr(request, kind)
            facts = {"kind": kind, "ends": message.end_of_stream, "observes": request.observability_mode}
            if kind.endswith("headers"):
                facts["headers"] = headers_of(message)
                facts["metadata"] = {
                    space: dict(fields.items()) for space, fields in request.metadata_context.filter_metadata.items()
                }
                facts["attributes"] = {space: dict(fields.items()) for space, fields in request.attributes.items()}
                if kind == "request_headers":
                    script.update(json.loads(facts["headers"].get("x-script", "{}")))
            else:
                facts["body"] = message.body.decode()
            if request.HasField("protocol_config"):
                config = request.protocol_config
                facts["modes"] = [config.request_body_mode, config.response_body_mode]
            seen.append(facts)
            word = script.get(kind, {})
            if request.observability_mode:
                continue
            if "sleep" in word:
                if "more_time" in word:
                    more = ext.ProcessingResponse()
                    more.override_message_timeout.FromMilliseconds(word["more_time"])
                    yield more
                time.sleep(word["sleep"])
            if word.get("end"):
                return
            if "abort" in word:
                context.abort(getattr(grpc.StatusCode, word["abort"]), "told to")
            if word.get("wrong"):
                yield ext.ProcessingResponse(response_trailers=ext.TrailersResponse())
                continue
            if "immediate" in word:
                told = word["immediate"]
                yield ext.ProcessingResponse(
                    immediate_response=ext.ImmediateResponse(
                        status=http_status_pb2.HttpStatus(code=told["status"]),
                        headers=mutation(told),
                        body=told.get("body", "").encode(),
                    )
                )
                return
            if kind.endswith("headers"):
                if word.get("late"):
                    late_headers = True
                    continue
                answer = ext.ProcessingResponse(**{kind: ext.HeadersResponse(response=common(word))})
                if "mode" in word:
                    answer.mode_override.CopyFrom(processing_mode_pb2.ProcessingMode(**word["mode"]))
                yield answer
                continue
            if word.get("duplex") == "join":
                held[kind] += message.body
                if not message.end_of_stream:
                    continue
                if late_headers and kind == "request_body":
                    yield ext.ProcessingResponse(
                        request_headers=ext.HeadersResponse(response=common({"set": {"x-late": "yes"}}))
                    )
                whole, size = held[kind].upper(), 50_000
                for at in range(0, max(len(whole), 1), size):
                    answer = streamed(whole[at : at + size], at + size >= len(whole))
                    yield ext.ProcessingResponse(**{kind: ext.BodyResponse(response=answer)})
            elif word.get("duplex") == "cut":
                yield ext.ProcessingResponse(**{kind: ext.BodyResponse(response=streamed(b"cut", True))})
                return
            elif word.get("duplex") == "endless":
                while message.end_of_stream and context.is_active():
                    yield ext.ProcessingResponse(**{kind: ext.BodyResponse(response=streamed(b"", False))})
            elif word.get("duplex"):
                body = message.body if word["duplex"] == "same" else message.body.upper()
                answer = streamed(body, message.end_of_stream)
                yield ext.ProcessingResponse(**{kind: ext.BodyResponse(response=answer)})
            else:
                answer = common(word, message.body)
                yield ext.ProcessingResponse(**{kind: ext.BodyResponse(response=answer)})


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(Processor(sys.argv[1]), server)
    if len(sys.argv) > 2:
        certificate, key = (pathlib.Path(name).read_bytes() for name in sys.argv[2:4])
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on {port}", flush=True)
    # Ends with the program that started it.
    sys.stdin.read()
    server.stop(0)


main()
