"""One real llama.cpp server (from the xllamacpp package) on 127.0.0.1, until SIGTERM or Ctrl-C.

Server of the demo and the end-to-end tests. Port 0 takes a free one; the line
`listening on http://127.0.0.1:PORT` on standard output names it, once the model answers.
"""

import argparse
import os
import signal
import sys
import threading

import xllamacpp


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="requests that it works on at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=4096, help="context, shared among the parallel requests")
    parser.add_argument("--alias", help="the model name that it shows in its answers")
    parser.add_argument("--metrics", action="store_true", help="serve /metrics")
    args = parser.parse_args()
    if not os.path.isfile(args.model):
        print(f"error: no such model file: {args.model}", file=sys.stderr)
        return 2

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.endpoint_metrics = args.metrics
    params.n_gpu_layers = 0
    if args.alias:
        params.model_alias = {args.alias}

    server = xllamacpp.Server(params)
    # Only now, because the server sets handlers of its own while it starts. Its threads may be in mid-request when
    # the signal arrives; none of their work is worth waiting for.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"listening on {server.listening_address}", flush=True)
    stop.wait()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
