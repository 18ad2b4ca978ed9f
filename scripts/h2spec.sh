#!/usr/bin/env bash
# Tests the HTTP/2 side of the listeners against the standard (RFC 9113, RFC 7541) with h2spec, without TLS and with
# it. SPILLWAY_BIN names the program; default: a new build. Arguments go to h2spec.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/test-tools.sh h2spec
if [ -z "${SPILLWAY_BIN:-}" ]; then
  cargo build --locked -p spillway
  SPILLWAY_BIN="${CARGO_TARGET_DIR:-$ROOT/target}/debug/spillway"
fi
python="$(find_python)" || die "no Python: run scripts/system.sh run"

folder="$(mktemp -d)"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$folder"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout "$folder/a.key" -out "$folder/a.pem" 2>/dev/null

# Server behind the gateway that answers every request.
cat >"$folder/server.py" <<'EOF'
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")
    do_POST = do_HEAD = do_OPTIONS = do_GET
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.handle_error = lambda *_: None
print(server.server_port, flush=True)
server.serve_forever()
EOF
"$python" "$folder/server.py" >"$folder/port" &
pids+=($!)
until [ -s "$folder/port" ]; do sleep 0.1; done
cat >"$folder/spillway.yaml" <<EOF
listeners:
  - {name: h2c, address: "127.0.0.1:0", protocol: h2c}
  - {name: https, address: "127.0.0.1:0", protocol: https, tls: {certificates: [{certFile: a.pem, keyFile: a.key}]}}
backends: [{name: up, endpoints: [{url: "http://127.0.0.1:$(cat "$folder/port")"}]}]
routes: [{backendRefs: [{name: up}]}]
telemetry: {logs: {access: false}}
EOF
"$SPILLWAY_BIN" serve -c "$folder/spillway.yaml" >"$folder/log" &
pids+=($!)
until grep -q '"event":"ready"' "$folder/log"; do sleep 0.1; done
port_of() { sed -n "s/.*\"listener\":\"$1\",\"address\":\"127.0.0.1:\([0-9]*\)\".*/\1/p" "$folder/log"; }

failed=0
say "HTTP/2 without TLS"
"$BIN/h2spec" -h 127.0.0.1 -p "$(port_of h2c)" "$@" || failed=1
say "HTTP/2 over TLS"
"$BIN/h2spec" -h 127.0.0.1 -p "$(port_of https)" -t -k "$@" || failed=1
exit "$failed"
