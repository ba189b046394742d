"""Which GPUs are this pod's: never the node's whole set by accident."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpuscale.gpu.handover import write_handover
from gpuscale.gpu.ownership import WAYS, Candidate, Decision, decide, in_process
from gpuscale.gpu.pod_resources import device_uuids, fields
from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot

NODE = [Candidate(f"GPU-{n}", str(n), n) for n in range(4)]
INSTANCES = [
    Candidate("MIG-a", "0", 0, "GPU-0", 0, 1, 0),
    Candidate("MIG-b", "0", 0, "GPU-0", 1, 2, 0),
    Candidate("GPU-1", "1", 1),
]


def uuids(decision: Decision, shown: list[Candidate] = NODE) -> list[str]:
    return [device.uuid for device in decision.select(shown)]


def visible(value: str) -> Decision:
    return in_process({"NVIDIA_VISIBLE_DEVICES": value})


def test_in_process_what_nvml_shows_narrowed_by_the_variable() -> None:
    assert len(uuids(in_process({}))) == 4
    assert len(uuids(visible("all"))) == 4
    assert len(uuids(visible("void"))) == 4  # what CDI leaves
    assert uuids(visible("none")) == []
    assert uuids(visible("GPU-2,GPU-3")) == ["GPU-2", "GPU-3"]
    assert uuids(visible("nvidia.com/gpu=GPU-2")) == ["GPU-2"]
    assert uuids(visible("1,3")) == ["GPU-1", "GPU-3"]
    assert uuids(visible("3"), NODE[:1]) == ["GPU-0"]  # the runtime narrowed and NVML counts anew
    assert uuids(visible("GPU-0"), INSTANCES) == ["MIG-a", "MIG-b"]
    assert uuids(visible("MIG-b"), INSTANCES) == ["MIG-b"]
    assert uuids(visible("MIG-GPU-0/2/0"), INSTANCES) == ["MIG-b"]
    assert uuids(visible("0:1"), INSTANCES) == ["MIG-b"]


def test_a_uuid_may_be_cut_short_as_the_container_toolkit_allows() -> None:
    shown = [Candidate("GPU-fef8089b-0001", "0", 0), Candidate("GPU-fef8089c-0002", "1", 1)]
    assert uuids(visible("GPU-fef8089b"), shown) == ["GPU-fef8089b-0001"]
    assert uuids(visible("GPU-FEF8089C-0002"), shown) == ["GPU-fef8089c-0002"]
    assert uuids(visible("GPU-fef"), shown) == []


@given(st.text(max_size=40))
def test_no_value_shows_more_than_nvml_does(value: str) -> None:
    assert set(uuids(visible(value))) <= {device.uuid for device in NODE}


class Pod:
    """A /proc, a /dev and a kubelet's socket as a sidecar sees them."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.dev, self.kubelet = folder / "proc", folder / "dev", folder / "kubelet.sock"
        self.dev.mkdir()
        self.add("self", "mnt:[1]")

    def add(self, pid: str, mounts: str, nodes: tuple[str, ...] = (), environ: str = "") -> Path:
        process = self.proc / pid
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(mounts)
        (process / "root/dev").mkdir(parents=True)
        for node in nodes:
            (process / "root/dev" / node).touch()
        (process / "environ").write_bytes(environ.encode().replace(b" ", b"\0"))
        return process

    def decide(self, explicit: str | None = None, **environ: str) -> Decision:
        return decide(explicit, environ, self.proc, self.dev, self.kubelet)


def test_a_sidecar_that_cannot_tell_shows_nothing_and_says_why(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    (pod.dev / "nvidia0").touch()
    decision = pod.decide(NVIDIA_VISIBLE_DEVICES="all")  # the node's whole set
    assert decision.nothing
    assert uuids(decision) == []
    for word in ("shareProcessNamespace", "claim", "pod-resources", "GPUSCALE_HANDOVER_DIR", "--gpus"):
        assert word in decision.why


def test_the_other_containers_of_a_shared_process_namespace(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.add("1", "mnt:[2]")  # pause
    pod.add("7", "mnt:[1]", ("nvidia3",))  # our own container
    pod.add("20", "mnt:[3]", ("nvidia1", "nvidiactl", "nvidia-uvm"), "A=b NVIDIA_VISIBLE_DEVICES=void")
    decision = pod.decide("GPU-0")
    assert decision.decided_by == "process-namespace"
    assert uuids(decision) == ["GPU-1"]


def test_uuids_in_the_environment_narrow_a_privileged_container_and_instances(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    nodes = ("nvidia0", "nvidia1", "nvidia2", "nvidia3")
    pod.add("20", "mnt:[3]", nodes, "NVIDIA_VISIBLE_DEVICES=GPU-2")
    assert uuids(pod.decide()) == ["GPU-2"]
    (tmp_path / "other").mkdir()
    partitioned = Pod(tmp_path / "other")
    partitioned.add("20", "mnt:[3]", ("nvidia0",), "NVIDIA_VISIBLE_DEVICES=MIG-b")
    assert uuids(partitioned.decide(), INSTANCES) == ["MIG-b"]


def test_a_privileged_container_does_not_show_the_nodes_whole_set(tmp_path: Path) -> None:
    """It has every node of the host. Beside one that tells it adds nothing; alone it is no way to tell."""
    pod = Pod(tmp_path)
    host = ("kmsg", "nvidia0", "nvidia1", "nvidia2", "nvidia3")
    pod.add("20", "mnt:[3]", host, "NVIDIA_VISIBLE_DEVICES=all")
    decision = pod.decide()
    assert decision.nothing
    assert "privileged" in decision.why
    pod.add("30", "mnt:[4]", ("nvidia1",), "NVIDIA_VISIBLE_DEVICES=void")
    assert uuids(pod.decide()) == ["GPU-1"]
    pod.add("40", "mnt:[5]", host, "NVIDIA_VISIBLE_DEVICES=GPU-3")  # its own UUIDs are for it alone
    assert uuids(pod.decide()) == ["GPU-1", "GPU-3"]


def test_a_privileged_sidecar_has_no_claim(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    for node in ("kmsg", "nvidia0", "nvidia1"):
        (pod.dev / node).touch()
    decision = pod.decide(NVIDIA_VISIBLE_DEVICES="void")
    assert decision.nothing
    assert "privileged" in decision.why


def test_of_a_partitioned_gpu_only_the_containers_instances(tmp_path: Path) -> None:
    """Instances share their GPU's node; which of them a container may open is told by its capability nodes."""
    pod = Pod(tmp_path)
    pod.add("20", "mnt:[3]", ("nvidia0",), "NVIDIA_VISIBLE_DEVICES=void")
    assert uuids(pod.decide(), INSTANCES) == []  # no way to know which: none, not all
    caps = pod.proc / "20/root/dev/nvidia-caps"
    caps.mkdir()
    for number in (1, 21, 22):
        (caps / f"nvidia-cap{number}").touch()
    minors = pod.proc / "driver/nvidia-caps/mig-minors"
    minors.parent.mkdir(parents=True)
    minors.write_text("config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n"
                      "gpu0/gi2/access 21\ngpu0/gi2/ci0/access 22\n")  # fmt: skip
    assert uuids(pod.decide(), INSTANCES) == ["MIG-b"]


def test_a_better_way_and_more_devices_overtake_a_decision() -> None:
    one, two = Decision("handover", names=("GPU-1",)), Decision("handover", names=("GPU-1", "GPU-2"))
    assert one.is_overtaken_by(two, NODE)
    assert not two.is_overtaken_by(one, NODE), "a container that is started again has its devices all the while"
    assert not one.is_overtaken_by(one, NODE)
    assert not one.is_overtaken_by(Decision("explicit"), NODE), "the node's whole set by accident"
    assert not one.is_overtaken_by(Decision("nothing", nothing=True), NODE)
    for better, worse in zip(WAYS, WAYS[1:], strict=False):
        assert Decision(worse).is_overtaken_by(Decision(better, names=("GPU-0",)), NODE)


def test_a_claim_shared_by_both_containers(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    (pod.dev / "nvidia2").touch()
    decision = pod.decide(NVIDIA_VISIBLE_DEVICES="void")
    assert decision.decided_by == "dra-claim"
    assert uuids(decision) == ["GPU-2"]


def test_the_ways_in_their_order(tmp_path: Path) -> None:
    """All five at once, each naming another GPU; taken away one after the other."""
    shown = [*NODE, Candidate("GPU-4", "4", 4)]
    pod = Pod(tmp_path)
    write_handover(tmp_path, GpuSnapshot("nvml", (GpuReading(GpuIdentity("GPU-3", "x", "3"), up=True),)))
    variables = {"NVIDIA_VISIBLE_DEVICES": "void", "POD_NAME": "mine", "POD_NAMESPACE": "ns"}
    variables["GPUSCALE_HANDOVER_DIR"] = str(tmp_path)
    app = pod.add("20", "mnt:[3]", ("nvidia0",))
    (pod.dev / "nvidia2").touch()
    found = []
    with kubelet(pod.kubelet, ANSWER):
        decision = pod.decide("GPU-4", **variables)
        found.append((decision.decided_by, uuids(decision, shown)))
        (app / "root/dev/nvidia0").unlink()
        decision = pod.decide("GPU-4", **variables)
        found.append((decision.decided_by, uuids(decision, shown)))
        (pod.dev / "nvidia2").unlink()
        decision = pod.decide("GPU-4", **variables)
        found.append((decision.decided_by, uuids(decision, shown)))
    pod.kubelet.unlink()
    decision = pod.decide("GPU-4", **variables)
    found.append((decision.decided_by, uuids(decision, shown)))
    decision = pod.decide("GPU-4")
    found.append((decision.decided_by, uuids(decision, shown)))
    assert found == list(zip(WAYS, (["GPU-0"], ["GPU-2"], ["GPU-1"], ["GPU-3"], ["GPU-4"]), strict=True))


def test_uuids_handed_over_come_before_explicit_ones(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    folder = tmp_path / "handover"
    folder.mkdir()
    assert uuids(pod.decide("GPU-0", GPUSCALE_HANDOVER_DIR=str(folder))) == ["GPU-0"]
    snapshot = GpuSnapshot("nvml", (GpuReading(GpuIdentity("GPU-3", "x", "3"), up=True),))
    write_handover(folder, snapshot)
    write_handover(folder, snapshot)
    decision = pod.decide("GPU-0", GPUSCALE_HANDOVER_DIR=str(folder))
    assert decision.decided_by == "handover"
    assert uuids(decision) == ["GPU-3"]
    (folder / "gpuscale-gpus.json").write_text('{"uuids": 7}')
    assert pod.decide("all", GPUSCALE_HANDOVER_DIR=str(folder)).decided_by == "explicit"


def message(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length, head = len(body), bytearray([number << 3 | 2])
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes(head) + bytes([length]) + body


def pod_entry(namespace: str, name: str, *ids: str, resource: str = "nvidia.com/gpu") -> bytes:
    devices = message(2, message(1, resource.encode()), *(message(2, device.encode()) for device in ids))
    return message(
        1, message(1, name.encode()), message(2, namespace.encode()), message(3, message(1, b"app"), devices)
    )


ANSWER = (
    pod_entry("ns", "other", "GPU-0")
    + pod_entry("else", "mine", "GPU-3")
    + pod_entry("ns", "mine", "GPU-1::4")
    + pod_entry("ns", "mine", "nic-1", resource="vendor.example/nic")
    + message(1, b"\x20\x01", message(1, b"mine" * 50))
)


def test_the_kubelets_answer() -> None:
    assert list(device_uuids(ANSWER, "ns", "mine")) == ["GPU-1"]


@given(st.binary(max_size=200))
def test_garbage_from_the_kubelet_is_a_value_error(raw: bytes) -> None:
    try:
        list(fields(raw))
    except ValueError:
        pass


@contextmanager
def kubelet(path: Path, answer: bytes, status: str = "0") -> Iterator[None]:
    """One gRPC call's worth of a kubelet."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import StreamEnded

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(5)
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        done = False
        while not done:
            peer.sendall(connection.data_to_send())
            for event in connection.receive_data(peer.recv(65536)):
                if isinstance(event, StreamEnded):
                    stream = event.stream_id
                    connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
                    connection.send_data(stream, bytes(1) + len(answer).to_bytes(4, "big") + answer)
                    connection.send_headers(stream, [("grpc-status", status)], end_stream=True)
                    done = True
        peer.sendall(connection.data_to_send())
        peer.recv(65536)
        peer.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(5)
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


def test_the_kubelets_socket(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    with kubelet(pod.kubelet, ANSWER):
        decision = pod.decide(POD_NAME="mine", POD_NAMESPACE="ns")
    assert decision.decided_by == "pod-resources"
    assert uuids(decision) == ["GPU-1"]


def test_a_kubelet_that_refuses_is_passed_over(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    with kubelet(pod.kubelet, b"", status="12"):
        decision = pod.decide("GPU-2", POD_NAME="mine", POD_NAMESPACE="ns")
    assert decision.decided_by == "explicit"
