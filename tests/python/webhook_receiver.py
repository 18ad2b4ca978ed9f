"""Receiver of notifications that verifies them with the reference implementation of Standard Webhooks, and reads them with the
official SDK of CloudEvents.

Usage: webhook_receiver.py. Prints `listening on PORT`. `GET /received` lists what came, in its order. A POST is answered by its
path: /ok with 204, /flaky with 503 at the first two attempts at an id, /gone with 410.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook, WebhookVerificationError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
received = []
attempts = {}
lock = threading.Lock()


def seen(headers, body):
    """What an attempt holds, as both libraries read it."""
    try:
        Webhook(SECRET).verify(body, headers)
    except WebhookVerificationError as e:
        return {"verified": False, "error": str(e)}
    event = from_http_event(HTTPMessage(headers=headers, body=body), JSONFormat())
    return {
        "verified": True,
        "id": event.get_id(),
        "webhookId": headers["webhook-id"],
        "type": event.get_type(),
        "source": event.get_source(),
        "subject": event.get_subject(),
        "specVersion": event.get_specversion(),
        "time": event.get_time().isoformat(),
        "contentType": headers["content-type"],
        "data": event.get_data(),
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        entry = seen(headers, body)
        with lock:
            key = (self.path, entry.get("id"))
            attempts[key] = attempts.get(key, 0) + 1
            status = {"/ok": 204, "/gone": 410}.get(self.path, 503 if attempts[key] <= 2 else 200)
            received.append({"path": self.path, "status": status, **entry})
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        with lock:
            body = json.dumps(received).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("listening on", server.server_port, flush=True)
sys.stdin.read()
