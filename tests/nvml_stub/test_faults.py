"""Errors, hangs, late drivers, lost GPUs, forks, and change while a process runs."""

import json
import signal
import subprocess
import time

import pytest

from . import Stub
from .programs import INIT, PRELUDE, answer, wait_for


def test_state_changes_while_the_process_runs(stub: Stub) -> None:
    stub.set("gpu.0.temperature", 40)
    code = INIT + "for line in sys.stdin: show(nvmlDeviceGetTemperature(device(), 0))"
    with stub.spawn(code, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for degrees in (40, 41, 90):
            stub.set("gpu.0.temperature", degrees)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{degrees}\n"
        process.stdin.close()


@pytest.mark.parametrize(
    ("code", "name"), [(15, "GpuIsLost"), ("GPU_IS_LOST", "GpuIsLost"), (18, "LibRmVersionMismatch")]
)
def test_an_ordered_error(stub: Stub, code: str | int, name: str) -> None:
    stub.fail("nvmlDeviceGetUUID", code, gpu=1)
    assert answer(stub, "show([name_of(nvmlDeviceGetUUID, device(i)) for i in (0, 1)])") == ["Success", name]
    stub.release()
    assert answer(stub, "show([name_of(nvmlDeviceGetUUID, device(i)) for i in (0, 1)])") == ["Success"] * 2


def test_errors_that_pass(stub: Stub) -> None:
    stub.fail("nvmlDeviceGetCount", "TIMEOUT", times=2)
    stub.fail("nvmlDeviceGetPowerUsage", 999, probability=0.3, seed=4)
    code = """
counts = [name_of(nvmlDeviceGetCount) for i in range(3)]
power = sum(name_of(nvmlDeviceGetPowerUsage, device()) == "Unknown" for i in range(1000))
show([counts, 250 < power < 350])
"""
    assert answer(stub, code) == [["Timeout", "Timeout", "Success"], True]


def test_an_error_for_a_while(stub: Stub) -> None:
    code = """
show("ready")
input()
answers = [name_of(nvmlDeviceGetUUID, device())]
end = time.monotonic() + 10
while time.monotonic() < end and answers[-1] != "Success":
    answers.append(name_of(nvmlDeviceGetUUID, device()))
show([answers[0], answers[-1]])
"""
    with stub.spawn(INIT + code, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == '"ready"\n'
        stub.fail("nvmlDeviceGetUUID", "UNKNOWN", seconds=1.0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == ["Unknown", "Success"]


def test_the_driver_arrives_late(stub: Stub) -> None:
    stub.uninstall()
    stub.fail("nvmlInit", "DRIVER_NOT_LOADED", times=1)
    code = """
show(name_of(nvmlInit))
input()
show([name_of(nvmlInit), name_of(nvmlDeviceGetCount), name_of(nvmlInit)])
"""
    with stub.spawn(PRELUDE + code, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == '"LibraryNotFound"\n'
        stub.install()
        process.stdin.write("\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == ["DriverNotLoaded", "Uninitialized", "Success"]


def test_a_lost_gpu_comes_back(stub: Stub) -> None:
    stub.lose(0)
    code = "show([name_of(device, 0), name_of(device, 1), nvmlDeviceGetCount()])"
    assert answer(stub, code) == ["GpuIsLost", "Success", 2]
    stub.find(0)
    assert answer(stub, code) == ["Success", "Success", 2]


def test_init_and_shutdown_are_counted(stub: Stub) -> None:
    code = """
functions = nvmlInit, nvmlShutdown, nvmlDeviceGetCount, nvmlShutdown, nvmlShutdown
show([name_of(function) for function in functions])
"""
    assert answer(stub, code) == ["Success", "Success", "Success", "Success", "Uninitialized"]
    assert [call.result for call in stub.calls("nvmlShutdown")] == [0, 0, 1]
    assert len(stub.calls("nvmlInitWithFlags")) == 2
    assert len({call.pid for call in stub.calls()}) == 1


def test_a_hang_ignores_signals_and_ends_on_release(stub: Stub) -> None:
    order = stub.hang("nvmlDeviceGetMemoryInfo")
    code = INIT + (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: show('signal'))\n"
        "nvmlDeviceGetMemoryInfo(device()); show('back')"
    )
    with stub.spawn(code) as process:
        assert process.stdout
        wait_for(stub, "nvmlDeviceGetMemoryInfo")
        for _ in range(5):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        assert stub.calls("nvmlDeviceGetMemoryInfo")[0].result is None
        stub.set("gpu.0.temperature", 50)  # a change of something else does not release it
        time.sleep(0.1)
        assert process.poll() is None
        stub.release(order)
        assert process.stdout.read().split() == ['"signal"', '"back"']
    assert stub.calls("nvmlDeviceGetMemoryInfo")[0].result == 0


def test_a_hang_of_one_gpu_for_a_while(stub: Stub) -> None:
    stub.hang("nvmlDeviceGetHandleByIndex", 0.5, gpu=1)
    code = """
times = []
for i in (0, 1):
    begin = time.monotonic(); device(i); times.append(time.monotonic() - begin)
show(times)
"""
    quick, slow = answer(stub, code)
    assert quick < 0.2
    assert 0.5 <= slow < 0.8


# Forks


def test_the_child_of_a_fork_must_initialise_anew(stub: Stub) -> None:
    code = """
h = device()
child = os.fork()
if child == 0:
    show([name_of(nvmlDeviceGetCount), name_of(nvmlDeviceGetUUID, h), name_of(nvmlInit),
          name_of(nvmlDeviceGetUUID, h), name_of(nvmlShutdown), name_of(nvmlShutdown)])
    os._exit(0)
os.waitpid(child, 0)
assert name_of(nvmlDeviceGetUUID, h) == "Success"
"""
    assert answer(stub, code) == [
        "Uninitialized",
        "Uninitialized",
        "Success",
        "Success",
        "Success",
        "Uninitialized",
    ]


def test_forks_beside_busy_threads_do_not_deadlock(stub: Stub) -> None:
    code = """
import threading
def work():
    while not stop:
        nvmlDeviceGetUtilizationRates(device())
stop = False
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
for _ in range(50):
    child = os.fork()
    if child == 0:
        nvmlInit()
        os._exit(nvmlDeviceGetCount())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
stop = True
[t.join() for t in threads]
show("done")
"""
    assert answer(stub, code) == "done"
