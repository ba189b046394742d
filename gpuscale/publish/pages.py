"""The pages of a pod: metrics, liveness, readiness; on the endpoint, or the metrics on the app itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpuscale.gpu.reading import GpuSnapshot

if TYPE_CHECKING:
    from gpuscale.publish.endpoint import Response


class Pages:
    """``render(accept)`` gives the metrics page as (body, content type); ``snapshot()`` the GPUs."""

    def __init__(self, render: Callable[[str], tuple[bytes, str]], snapshot: Callable[[], GpuSnapshot]) -> None:
        self._render = render
        self._snapshot = snapshot

    def handlers(self) -> Mapping[str, Callable[[Mapping[str, str]], Response]]:
        """The endpoint's pages."""
        from gpuscale.publish.endpoint import Response

        def metrics(headers: Mapping[str, str]) -> Response:
            body, content_type = self._render(headers.get("accept", ""))
            return Response(200, content_type, body)

        def healthz(_: Mapping[str, str]) -> Response:
            trouble = gpu_trouble(self._snapshot())
            return unavailable(trouble) if trouble else fine()

        def readyz(_: Mapping[str, str]) -> Response:
            return fine()

        return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}

    async def respond_asgi(self, scope: Mapping[str, Any], send: Callable[..., Any]) -> None:
        """The metrics page as an ASGI answer, where it is served on the app itself."""
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        body, content_type = self._render(accept)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def respond_wsgi(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """The metrics page as a WSGI answer, where it is served on the app itself."""
        body, content_type = self._render(environ.get("HTTP_ACCEPT", ""))
        start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]


def gpu_trouble(snapshot: GpuSnapshot) -> str:
    """Why a liveness probe should have the container started anew; empty when there is no reason."""
    if snapshot.lost_for_good:
        which = ", ".join(gpu.identity.uuid for gpu in snapshot.gpus if not gpu.up)
        return ": ".join(part for part in ("the GPU is lost for good", which, snapshot.why_empty) if part)
    if not snapshot.alive:
        return f"the GPU sampler is stuck or dead: {snapshot.why_empty}"
    return ""


def fine() -> Response:
    """A probe's good answer."""
    from gpuscale.publish.endpoint import Response
    from gpuscale.publish.http_message import PLAIN

    return Response(200, PLAIN, b"ok\n")


def unavailable(message: str) -> Response:
    """A probe's bad answer, with the reason for a person."""
    from gpuscale.publish.endpoint import Response
    from gpuscale.publish.http_message import PLAIN

    return Response(503, PLAIN, f"{message.rstrip(': ')}\n".encode())
