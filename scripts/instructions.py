#!/usr/bin/env python3
"""Counts the user-space instructions of a request through the gateway, with callgrind, on one kept connection.

instructions.py SPILLWAY BOUNDS [WORKLOAD...]

Origin and client are this program, so that every run has the same reads and writes. Each workload gets a gateway of its
own: requests to warm it up, then the counted ones. BOUNDS has lines `WORKLOAD INSTRUCTIONS`; a count above its bound by
more than 5 % fails. The counts do not depend on the machine's load, and little on its processor.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

WARM, COUNTED = 300, 1000
SLACK = 1.05
EVENTS = 20

JSON_BODY = json.dumps({"text": "x" * 185}).encode()
CHAT_ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "large",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 900, "completion_tokens": 3, "total_tokens": 903},
}).encode()


def event(number):
    """Event of a stream of chat chunks; the last one ends it."""
    if number == EVENTS - 1:
        return b"data: [DONE]\n\n"
    delta = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "large",
             "choices": [{"index": 0, "delta": {"content": f" word{number}"}, "finish_reason": None}]}
    return b"data: " + json.dumps(delta).encode() + b"\n\n"


def read_head(stream):
    """Head of a message, and its Content-Length; None at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, int(length[1]) if length else 0


class Origin:
    """Server of the gateway. An event of a stream follows when the client has the one before."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.next = threading.Semaphore(0)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        stream = connection.makefile("rb")
        while (message := read_head(stream)) is not None:
            head, length = message
            body = stream.read(length)
            if b'"stream": true' in body:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                for number in range(EVENTS):
                    self.next.acquire()
                    part = event(number)
                    connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                connection.sendall(b"0\r\n\r\n")
                continue
            answer = CHAT_ANSWER if head.startswith(b"POST") else JSON_BODY
            connection.sendall(b"HTTP/1.1 200 OK\r\nServer: origin\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))


BARE = """
listeners: [{address: "127.0.0.1:GATEWAY"}]
admin: {address: "127.0.0.1:0"}
telemetry: {logs: {access: false}}
backends: [{name: u, endpoints: [{url: "http://127.0.0.1:ORIGIN"}]}]
routes: [{backendRefs: [{name: u}]}]
"""
# SHA-256 of the key `test`.
FULL = """
listeners: [{address: "127.0.0.1:GATEWAY"}]
admin: {address: "127.0.0.1:0"}
backends: [{name: u, endpoints: [{url: "http://127.0.0.1:ORIGIN"}]}]
consumers: [{name: a, keys: [{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}]}]
routes:
  - filters:
      - rateLimit: {by: clientAddress, requests: 1000000/s}
      - rateLimit: {by: consumer, requests: 1000000/s}
      - requestHeaders: {set: {x-served-by: spillway}, remove: [cookie]}
      - responseHeaders: {set: {x-backend: "{backend}"}}
    backendRefs: [{name: u}]
"""
CHAT = """
listeners: [{address: "127.0.0.1:GATEWAY"}]
admin: {address: "127.0.0.1:0"}
telemetry: {logs: {access: false}}
backends:
  - {name: large, protocol: openai, endpoints: [{url: "http://127.0.0.1:ORIGIN"}]}
  - {name: small, protocol: openai, endpoints: [{url: "http://127.0.0.1:1"}]}
routes:
  - {name: large, matches: [{model: large}], backendRefs: [{name: large}]}
  - {name: small, matches: [{model: small}], backendRefs: [{name: small}]}
"""


def get(headers=""):
    return f"GET /item?n=1 HTTP/1.1\r\nHost: api.test\r\nUser-Agent: instructions\r\nAccept: */*\r\n{headers}\r\n".encode()


def chat(stream):
    body = {"model": "large", "temperature": 0, "messages": [
        {"role": "system", "content": "You answer briefly. " * 50},
        {"role": "user", "content": "Tell me about spillways of dams. " * 90},
    ]}
    if stream:
        body = {"model": "large", "stream": True, "messages": [{"role": "user", "content": "Tell me about dams."}]}
    body = json.dumps(body).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: api.test\r\nUser-Agent: instructions\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
    return head.encode() + body


# Configuration, request, and whether the answer is a stream.
WORKLOADS = {
    "bare": (BARE, get(), False),
    "full": (FULL, get("X-Api-Key: test\r\nCookie: a=b\r\n"), False),
    "chat": (CHAT, chat(False), False),
    "sse": (CHAT, chat(True), True),
}


def ask(connection, stream, origin, request, is_stream):
    """Sends a request and reads its answer to the end."""
    connection.sendall(request)
    if is_stream:
        origin.next.release()
    message = read_head(stream)
    if message is None or b" 200 " not in message[0].split(b"\r\n")[0]:
        raise SystemExit(f"instructions: expected an answer of 200, found {message}")
    if not is_stream:
        stream.read(message[1])
        return
    seen = 0
    while (size := int(stream.readline(), 16)) > 0:
        seen += stream.read(size).count(b"\n\n")
        stream.readline()
        if seen < EVENTS:
            origin.next.release()
    stream.readline()


def count(spillway, name, folder):
    """Instructions of one request of the workload."""
    config, request, is_stream = WORKLOADS[name]
    origin = Origin()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path, out, log = (os.path.join(folder, f"{name}.{end}") for end in ("yaml", "callgrind", "log"))
    with open(path, "w", encoding="utf-8") as file:
        file.write(config.replace("GATEWAY", str(port)).replace("ORIGIN", str(origin.port)))
    with open(log, "w", encoding="utf-8") as file:
        gateway = subprocess.Popen(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", spillway, "serve", "-c", path],
            stdout=file, stderr=file)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if gateway.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"instructions: the gateway did not start; see {log}") from None
                time.sleep(0.2)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        collect = lambda state: subprocess.run(["callgrind_control", "-i", state, str(gateway.pid)], check=True,
                                               stdout=subprocess.DEVNULL)
        for _ in range(WARM):
            ask(connection, stream, origin, request, is_stream)
        collect("on")
        for _ in range(COUNTED):
            ask(connection, stream, origin, request, is_stream)
        collect("off")
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(120)
    with open(out, encoding="utf-8", errors="replace") as file:
        totals = re.search(r"^totals: (\d+)", file.read(), re.MULTILINE)
    return int(totals[1]) / COUNTED


def main():
    spillway, bounds_file, *names = sys.argv[1:]
    with open(bounds_file, encoding="utf-8") as file:
        lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    bounds = {name: int(most) for name, most in lines}
    folder = tempfile.mkdtemp(prefix="spillway-instructions-")
    failed = False
    print(f"{'workload':10} {'instructions':>12} {'bound':>8}")
    for name in names or WORKLOADS:
        found = count(spillway, name, folder)
        is_over = found > bounds[name] * SLACK
        failed |= is_over
        print(f"{name:10} {found:12,.0f} {bounds[name]:8,}{'  over its bound by more than 5 %' if is_over else ''}", flush=True)
    if failed or os.environ.get("SPILLWAY_KEEP_PROFILES"):
        print(f"Profiles for callgrind_annotate are in {folder}.")
    else:
        shutil.rmtree(folder)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
