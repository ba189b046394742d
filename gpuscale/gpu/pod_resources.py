"""The kubelet's pod-resources API: which devices it gave to this pod. gRPC over a Unix socket, by way of ``h2``.

The service is v1.PodResourcesLister of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto; the field numbers below
are from there. ``h2`` (pure Python) speaks HTTP/2 for us; grpcio would take more memory than the whole sidecar.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpuscale.gpu.ownership import Decision

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
METHOD = "/v1.PodResourcesLister/List"
LARGEST_ANSWER = 16 << 20
TIMEOUT = 5.0

POD_RESOURCES = 1  # of ListPodResourcesResponse
NAME, NAMESPACE, CONTAINERS = 1, 2, 3  # of PodResources
DEVICES = 2  # of ContainerResources
RESOURCE_NAME, DEVICE_IDS = 1, 2  # of ContainerDevices


def decide(environ: Mapping[str, str], path: Path | None, lacks: list[str]) -> Decision | None:
    """The UUIDs that the kubelet gave to the containers of the pod whose name is POD_NAME, else the host name."""
    path = SOCKET if path is None else path
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileNotFoundError
    except OSError:
        lacks.append("the kubelet's pod-resources socket is not mounted")
        return None
    pod = environ.get("POD_NAME") or environ.get("HOSTNAME") or socket.gethostname()
    namespace = environ.get("POD_NAMESPACE") or _namespace()
    if not namespace:
        lacks.append("the kubelet's pod-resources need POD_NAMESPACE (downward API)")
        return None
    try:
        answer = ask(path)
        uuids = tuple(device_uuids(answer, namespace, pod))
    except ImportError:
        lacks.append("the kubelet's pod-resources need the package h2: pip install 'gpuscale[kubelet]'")
        return None
    except (OSError, ValueError) as error:
        lacks.append(f"the kubelet's pod-resources did not answer: {error}")
        return None
    if not uuids:
        lacks.append(f"the kubelet gave no GPU to the pod {namespace}/{pod}")
        return None
    return Decision("pod-resources", names=uuids, why=f"NVML shows none of the kubelet's {', '.join(uuids)}")


def _namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""


def ask(path: Path) -> bytes:
    """The answer of List, as a protobuf message. Raises OSError, ValueError (not gRPC), ImportError (no h2)."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
    from h2.exceptions import ProtocolError

    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", "localhost"),
        ("content-type", "application/grpc"), ("te", "trailers"),
    ]  # fmt: skip
    body = bytearray()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(TIMEOUT)
        peer.connect(os.fspath(path))
        connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, headers)
        connection.send_data(stream, bytes(5), end_stream=True)  # not compressed, an empty message
        try:
            while True:
                peer.sendall(connection.data_to_send())
                chunk = peer.recv(65536)
                if not chunk:
                    raise ValueError("it closed the connection")
                for event in connection.receive_data(chunk):
                    if isinstance(event, DataReceived):
                        body += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, stream)
                    elif isinstance(event, (ResponseReceived, TrailersReceived)):
                        _check({str(name): str(value) for name, value in event.headers})
                    elif isinstance(event, StreamReset):
                        raise ValueError(f"it reset the call ({event.error_code})")
                    elif isinstance(event, StreamEnded):
                        return _message(bytes(body))
                if len(body) > LARGEST_ANSWER:
                    raise ValueError("its answer is too large")
        except ProtocolError as error:
            raise ValueError(f"it does not speak HTTP/2: {error}") from None


def _check(headers: Mapping[str, str]) -> None:
    if headers.get(":status", "200") != "200":
        raise ValueError(f"HTTP status {headers[':status']}")
    if headers.get("grpc-status", "0") != "0":
        raise ValueError(f"gRPC status {headers['grpc-status']}: {headers.get('grpc-message', '')}")


def _message(body: bytes) -> bytes:
    """The one length-prefixed message of a unary answer."""
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise ValueError("its answer is not a whole gRPC message")
    return body[5:]


def device_uuids(answer: bytes, namespace: str, pod: str) -> Iterator[str]:
    """UUIDs of the NVIDIA devices of one pod in a ListPodResourcesResponse. Raises ValueError."""
    for number, entry in fields(answer):
        if number != POD_RESOURCES:
            continue
        parts = list(fields(entry))
        identity = {number: value.decode() for number, value in parts if number in (NAME, NAMESPACE)}
        if identity.get(NAME) != pod or identity.get(NAMESPACE) != namespace:
            continue
        for part, container in parts:
            if part == CONTAINERS:
                for number, devices in fields(container):
                    if number == DEVICES:
                        yield from _device_ids(devices)


def _device_ids(devices: bytes) -> Iterator[str]:
    """A time-slicing replica is called UUID::N."""
    parts = list(fields(devices))
    resource = next((value.decode() for number, value in parts if number == RESOURCE_NAME), "")
    if resource.startswith("nvidia.com/"):
        for number, value in parts:
            if number == DEVICE_IDS:
                yield value.decode().partition("::")[0]


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the length-delimited fields of a protobuf message; others are passed over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("a field goes beyond its message")
            yield key >> 3, message[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number goes beyond its message")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
