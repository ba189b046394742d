"""A gateway that holds requests until a pod is there, and the proxy in front of it, which counts the waiting."""

from __future__ import annotations

from gpuscale import __version__
from tests.e2e import pods
from tests.e2e.service import NAME, Service

GATEWAY = "bert-intent-gateway"
PORT = 8000
HOLD = f"""\
import http.client, http.server, time

class Hold(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        end = time.monotonic() + 170
        while True:
            try:
                service = http.client.HTTPConnection('{NAME}-svc', 8500, timeout=20)
                service.request('GET', self.path)
                answer = service.getresponse()
                body = answer.read()
                break
            except OSError:
                if time.monotonic() > end:
                    self.send_error(504)
                    return
                time.sleep(0.5)
        self.send_response(answer.status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(('127.0.0.1', 8001), Hold).serve_forever()
"""


def apply(service: Service) -> None:
    """It has no GPU, and says so."""
    image = f"gpuscale-sidecar:{__version__}"
    hold = {"name": "hold", "image": image, "command": ["python", "-c", HOLD]}
    count = {
        "name": "count",
        "image": image,
        "command": ["gpuscale", "sidecar", "--gpu", "none", "--proxy", f"{PORT}:127.0.0.1:8001", "--route", "/predict"],
        "ports": [{"name": "metrics", "containerPort": 9445}, {"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}, "periodSeconds": 2},
    }
    made = pods.deployment(GATEWAY, [hold, count], published=True, initContainers=[], volumes=[])
    pods.apply(service, made, pods.node_port(GATEWAY, PORT))
    pods.first_pod(service, GATEWAY)
