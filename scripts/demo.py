"""The demo: two llama.cpp servers, Jaeger and the gateway before them; a few requests, a crowd, and one whole trace.

Starts every server as a process group of its own and stops all of them however it ends. Everything printed was received
over the wire; nothing is assumed. Started by scripts/demo.sh, which installs and builds what it needs.
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from openai import APIStatusError, OpenAI

GATEWAY = "http://127.0.0.1:8080"
ADMIN = "http://127.0.0.1:9901"
LLAMAS = [("llama-a", 8081), ("llama-b", 8082)]
SLOTS = 2  # of each server, as `maxInFlight` in the configuration says
JAEGER_QUERY = 16686
JAEGER_OTLP = [4317, 4318]
CROWD = 14
SERVED_BY = "x-spillway-served-by"


class DemoError(Exception):
    """Error that ends the demo, with a message for the user."""


def say(text: str) -> None:
    print(f"\n\033[1m==>\033[0m {text}", flush=True)


def note(text: str = "") -> None:
    print(f"    {text}" if text else "", flush=True)


# --- the servers -----------------------------------------------------------------------------------------------------


@dataclass
class Server:
    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,
            )

    def end_of_log(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"      {line}" for line in lines)

    def signal_group(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def die_with_parent() -> None:
    """Runs between fork and exec of a server, so that it ends even if the demo is killed (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclass
class Fleet:
    servers: list[Server] = field(default_factory=list)

    def start(self, name: str, command: list[str], logs: Path) -> Server:
        server = Server(name, command, logs / f"{name}.log")
        server.start()
        self.servers.append(server)
        return server

    def stop(self) -> None:
        # The gateway first, so that it does not report the loss of its servers.
        for server in reversed(self.servers):
            server.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for server in self.servers:
            assert server.process is not None
            try:
                server.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"warning: {server.name} did not stop in 10 s, killing it", file=sys.stderr)
            server.signal_group(signal.SIGKILL)  # the rest of its group, if there is any
            server.process.wait()

    def check_alive(self) -> None:
        for server in self.servers:
            assert server.process is not None
            if server.process.poll() is not None:
                raise DemoError(
                    f"{server.name} ended by itself (status {server.process.returncode}). "
                    f"The end of {server.log}:\n{server.end_of_log()}"
                )

    def wait_for(self, what: str, url: str, seconds: float) -> None:
        begin = time.monotonic()
        last = "no answer"
        while time.monotonic() - begin < seconds:
            self.check_alive()
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        note(f"{what:10} ready after {time.monotonic() - begin:4.1f} s   {url}")
                        return
            except urllib.error.HTTPError as error:
                last = f"status {error.code}"
            except OSError as error:
                last = str(error)
            time.sleep(0.1)
        raise DemoError(f"{what} was not ready after {seconds:.0f} s: {url} gave: {last}. Logs: {self.servers[-1].log.parent}")


def check_ports_free() -> None:
    taken = []
    ports = [8080, 9901, *(port for _, port in LLAMAS), JAEGER_QUERY, *JAEGER_OTLP]
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(str(port))
    if taken:
        raise DemoError(f"in use on 127.0.0.1: port {', '.join(taken)}. Stop what listens there (`ss -ltnp` shows it), then try again.")


# --- the requests ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    served_by: str
    model: str
    seconds: float
    text: str = ""


def ask(client: OpenAI, prompt: str, tokens: int, show: bool = False) -> Answer:
    """Sends one streamed request by the unmodified OpenAI client; header and body name the server that answered."""
    begin = time.monotonic()
    try:
        raw = client.chat.completions.with_raw_response.create(
            model="chat", messages=[{"role": "user", "content": prompt}], max_tokens=tokens, temperature=0, stream=True
        )
        text, model = "", ""
        for chunk in raw.parse():
            model = chunk.model or model
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                text += piece
                if show:
                    print(piece, end="", flush=True)
        served_by = raw.headers.get(SERVED_BY) or f"{model} (llama.cpp)"
        return Answer(raw.status_code, served_by, model, time.monotonic() - begin, text)
    except APIStatusError as error:
        return Answer(error.status_code, "-", "-", time.monotonic() - begin, str(error.message))


def first_requests(client: OpenAI) -> None:
    say("Two requests, by the official OpenAI client on http://127.0.0.1:8080/v1")
    prompt = "What is the capital of France? Answer in one sentence."
    note(f"not streamed: {prompt}")
    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=[{"role": "user", "content": prompt}], max_tokens=40, temperature=0
    )
    answer = raw.parse()
    usage = answer.usage
    note(f"  -> {(answer.choices[0].message.content or '').strip()}")
    note(f"  served by {raw.headers.get(SERVED_BY) or answer.model + ' (llama.cpp)'}, "
         f"{usage.prompt_tokens if usage else '?'} tokens in, {usage.completion_tokens if usage else '?'} out, "
         f"request id {raw.headers.get('x-request-id', '-')}")
    prompt = "Name three rivers."
    note(f"streamed: {prompt}")
    print("      -> ", end="", flush=True)
    streamed = ask(client, prompt, 40, show=True)
    print()
    note(f"  served by {streamed.served_by} in {streamed.seconds:.1f} s")


def crowd(client: OpenAI) -> bool:
    places = SLOTS * len(LLAMAS)
    say(f"{CROWD} requests at once, for {places} places: those without room at the servers spill to the built-in model")
    start = threading.Barrier(CROWD)

    def one(number: int) -> Answer:
        start.wait(10)
        return ask(client, f"Count upwards from {number}.", 48)

    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        answers = list(pool.map(one, range(1, CROWD + 1)))
    note(f"{'request':>7}  {'status':>6}  {'seconds':>7}  {'served by':24} {'model':14} answer")
    for number, answer in enumerate(answers, 1):
        line = " ".join(answer.text.split())
        note(f"{number:>7}  {answer.status:>6}  {answer.seconds:>7.1f}  {answer.served_by:24} {answer.model:14} {line[:40]}")
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer.served_by if answer.status == 200 else f"refused with {answer.status}"] = (
            counts.get(answer.served_by if answer.status == 200 else f"refused with {answer.status}", 0) + 1
        )
    note()
    for who, count in sorted(counts.items()):
        note(f"{count:>3} x {who}")
    spilled = any(answer.served_by.startswith("builtin/") for answer in answers)
    if not spilled:
        print("warning: nothing spilled: the servers were quick enough for all", file=sys.stderr)
    return spilled


# --- the trace -------------------------------------------------------------------------------------------------------


def jaeger_get(path: str) -> list:
    with urllib.request.urlopen(f"http://127.0.0.1:{JAEGER_QUERY}{path}", timeout=10) as answer:
        return json.load(answer).get("data") or []


def tags(span: dict) -> dict:
    return {tag["key"]: tag["value"] for tag in span.get("tags", [])}


def looks_spilled(trace: dict) -> bool:
    return any("builtin/" in str(value) for span in trace["spans"] for value in tags(span).values()) or any(
        "decode" in span["operationName"] for span in trace["spans"]
    )


def show_trace(want_spilled: bool) -> None:
    """Waits until the exporter's batch has arrived, then prints one trace; a spilled one if there was any."""
    say("One whole trace, read back from Jaeger")
    query = urllib.parse.urlencode({"service": "spillway", "limit": 100, "lookback": "1h"})
    deadline = time.monotonic() + 30
    traces: list = []
    chosen: dict | None = None
    while time.monotonic() < deadline and chosen is None:
        traces = [t for t in jaeger_get(f"/api/traces?{query}") if len(t["spans"]) > 1]
        wanted = [t for t in traces if looks_spilled(t)] if want_spilled else traces
        # The trace with most spans shows most.
        chosen = max(wanted, key=lambda t: len(t["spans"]), default=None)
        if chosen is None:
            time.sleep(1)
    if chosen is None:
        if not traces:
            raise DemoError("Jaeger has no trace of the service `spillway` after 30 s: see the gateway's log for its exporter")
        chosen = max(traces, key=lambda t: len(t["spans"]))
    note(f"http://127.0.0.1:{JAEGER_QUERY}/api/traces/{chosen['traceID']}")
    note("(this Jaeger carries no pages, only its query API; in compose.yaml the same link without /api is a page)")
    note()
    print_tree(chosen["spans"])


def print_tree(spans: list) -> None:
    children: dict[str | None, list] = {}
    known = {span["spanID"] for span in spans}
    for span in sorted(spans, key=lambda s: s["startTime"]):
        parent = next((r["spanID"] for r in span.get("references", []) if r["refType"] == "CHILD_OF"), None)
        children.setdefault(parent if parent in known else None, []).append(span)
    begin = min(span["startTime"] for span in spans)
    hidden = ("otel.", "internal.span.format", "span.kind", "thread.", "code.")

    def show(span: dict, lead: str, branch: str) -> None:
        at, took = (span["startTime"] - begin) / 1000, span["duration"] / 1000
        note(f"{lead}{branch}{span['operationName']:<{max(1, 34 - len(lead + branch))}} +{at:8.1f} ms  {took:9.1f} ms")
        below = lead + ("   " if branch in ("", "└─ ") else "│  ")
        kids = children.get(span["spanID"], [])
        shown = {k: v for k, v in tags(span).items() if not k.startswith(hidden)}
        for key, value in sorted(shown.items()):
            note(f"{below}{'│  ' if kids else '   '}{key} = {value}")
        for index, kid in enumerate(kids):
            show(kid, below, "└─ " if index == len(kids) - 1 else "├─ ")

    for root in children.get(None, []):
        show(root, "", "")


# --- the whole -------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, fleet: Fleet) -> None:
    check_ports_free()
    args.logs.mkdir(parents=True, exist_ok=True)
    say(f"Starting two llama.cpp servers, Jaeger and the gateway (their logs: {args.logs})")
    here = Path(__file__).resolve().parent
    fleet.start("jaeger", [str(args.jaeger)], args.logs)
    for name, port in LLAMAS:
        fleet.start(name, [sys.executable, str(here / "llama_server.py"), "--model", str(args.model), "--port", str(port),
                           "--parallel", str(SLOTS), "--threads", "1", "--ctx", "4096", "--alias", name], args.logs)
    for name, port in LLAMAS:
        fleet.wait_for(name, f"http://127.0.0.1:{port}/health", 60)
    fleet.wait_for("jaeger", f"http://127.0.0.1:{JAEGER_QUERY}/api/services", 60)
    fleet.start("spillway", [str(args.spillway), "serve", "-c", str(args.config)], args.logs)
    fleet.wait_for("spillway", f"{ADMIN}/readyz", 180)

    client = OpenAI(base_url=f"{GATEWAY}/v1", api_key="none", max_retries=0, timeout=180)
    first_requests(client)
    spilled = crowd(client)
    show_trace(spilled)

    say("All of it is up")
    note(f"{GATEWAY}/v1         the gateway; try: curl {GATEWAY}/v1/models")
    note(f"{ADMIN}            its admin address: /metrics, /healthz, /readyz, /api/config")
    for name, port in LLAMAS:
        note(f"http://127.0.0.1:{port}            {name}")
    note(f"http://127.0.0.1:{JAEGER_QUERY}           Jaeger's query API: /api/traces?service=spillway")
    note(f"{args.config}  the configuration: edit and save it, it is applied at once")
    if args.once:
        return
    note()
    note("Ctrl-C stops everything.")
    while True:
        time.sleep(1)
        fleet.check_alive()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("spillway", "jaeger", "model", "config", "logs"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--once", action="store_true", help="end when all has been shown")
    args = parser.parse_args()

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    fleet = Fleet()
    status = 0
    try:
        run(args, fleet)
    except KeyboardInterrupt:
        pass
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    finally:
        # A second Ctrl-C must not leave servers running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if fleet.servers:
            say("Stopping everything")
            fleet.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
