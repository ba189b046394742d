"""``gpuscale run``: signals, exit status, PID 1's duties, and publishing beside the command."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nvml_stub import Stub
from tests.sidecar.processes import ROOT, free_port, gpuscale
from tests.sidecar.proxy_ends import GET, read_exactly, read_head, until

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SAYS_SIGNALS = """
import signal, sys, time
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM: sys.exit(7)
for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGINT"): signal.signal(getattr(signal, name), say)
print("ready", flush=True)
while True: time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("code", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_status_is_the_commands(tmp_path: Path, code: str, status: int) -> None:
    with gpuscale("run", "--gpu", "none", "--", "sh", "-c", code, folder=tmp_path) as running:
        assert running.process.wait(30) == status


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_started(tmp_path: Path, command: str, status: int) -> None:
    with gpuscale("run", "--gpu", "none", "--", command, folder=tmp_path) as running:
        assert running.process.wait(30) == status
        assert f"gpuscale run: {command} cannot be started" in running.log
        assert "Traceback" not in running.log


def test_the_command_is_wanted(tmp_path: Path) -> None:
    with gpuscale("run", "--gpu", "none", folder=tmp_path) as running:
        assert running.process.wait(30) == 2
        assert "-- COMMAND" in running.log


def test_output_arguments_and_environment_pass_through(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['MINE'])"
    with gpuscale(
        "run",
        "--gpu",
        "none",
        "--",
        sys.executable,
        "-c",
        code,
        "--port",
        "a b",
        folder=tmp_path,
        environ={"MINE": "x"},
    ) as running:
        out, _ = running.process.communicate(timeout=30)
    assert out == "['--port', 'a b'] x\n"


def test_signals_are_passed_on(tmp_path: Path) -> None:
    with gpuscale("run", "--gpu", "none", "--", sys.executable, "-c", SAYS_SIGNALS, folder=tmp_path) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "ready\n"
        for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
            running.process.send_signal(getattr(signal, name))
            assert running.process.stdout.readline() == f"{name}\n"
        assert running.process.wait(30) == 7


def test_the_command_starts_with_no_signal_blocked_or_ignored(tmp_path: Path) -> None:
    """Ours are blocked, and Python ignores SIGPIPE: neither is the command's."""
    with gpuscale(
        "run", "--gpu", "none", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", folder=tmp_path
    ) as running:
        out, _ = running.process.communicate(timeout=30)
    own_of_the_c_library = 1 << 31 | 1 << 32
    assert {int(line.split()[1], 16) & ~own_of_the_c_library for line in out.splitlines()} == {0}


def test_it_publishes_beside_the_command(tmp_path: Path) -> None:
    stub = Stub.create(tmp_path / "stub", gpus=1)
    app, proxy = free_port(), free_port()
    with gpuscale(
        "run", "--proxy", f"{proxy}:{app}", "--", sys.executable, "-c", SERVER, str(app), folder=tmp_path, stub=stub
    ) as running:
        running.wait_for("nvidia_gpu_up{")

        def answered() -> bool:
            with socket.create_connection(("127.0.0.1", proxy), timeout=10) as client:
                client.sendall(GET.replace(b"/hello", b"/healthz"))
                return b"200 OK" in read_head(client)

        until(answered)
        with socket.create_connection(("127.0.0.1", proxy), timeout=10) as client:
            client.sendall(GET)
            assert b"200 OK" in read_head(client)
            assert read_exactly(client, 2) == b"ok"
        running.wait_for('gpuscale_requests_total{method="GET",route="unmatched",status="200"} 1.0')
        assert running.end()[0] == 143, "Python's http.server ends by SIGTERM"


def test_a_hanging_driver_does_not_keep_it(tmp_path: Path) -> None:
    stub = Stub.create(tmp_path / "stub", gpus=1)
    stub.hang("nvmlInit")
    with gpuscale("run", "--", "sleep", "60", folder=tmp_path, stub=stub) as running:
        running.wait_for("nvidia_gpu_num_devices 0.0")
        status, seconds = running.end()
        assert status == 143
        assert seconds < 10


def test_orphans_are_collected_as_pid_1(tmp_path: Path) -> None:
    """In a PID namespace of its own, a grandchild that ends after its parent must not stay a zombie."""
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("needs the right to make a PID namespace")
    script = "(sleep 0.3 &) ; (sleep 0.3 &) ; sleep 1; grep -l 'State:.Z' /proc/[0-9]*/status; echo done"
    command = [sys.executable, "-m", "gpuscale", "run", "--gpu", "none", "--", "sh", "-c", script]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "GPUSCALE_PORT": "0"}
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0


def test_ctrl_c_reaches_the_command_once(tmp_path: Path) -> None:
    """From the terminal's driver: it goes to the whole foreground group, and is not sent a second time."""
    code = (
        "import signal, time, sys\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('ready', flush=True)\n"
        "end = time.monotonic() + 30\n"
        "while not seen and time.monotonic() < end: time.sleep(0.05)\n"
        "time.sleep(0.5)\n"
        "print('interrupts:', len(seen), flush=True)\n"
        "sys.exit(3)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PYTHONPATH=str(ROOT), GPUSCALE_PORT="0", GPUSCALE_LOG_LEVEL="error")
        os.execv(
            sys.executable, [sys.executable, "-m", "gpuscale", "run", "--gpu", "none", "--", sys.executable, "-c", code]
        )
    output = b""
    try:
        end = time.monotonic() + 30
        while b"ready" not in output and time.monotonic() < end:
            output += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        while b"\n" not in output.partition(b"interrupts")[2] and time.monotonic() < end:
            output += os.read(terminal, 1000)
    finally:
        _, wait_status = os.waitpid(pid, 0)
        os.close(terminal)
    assert b"interrupts: 1" in output
    assert os.waitstatus_to_exitcode(wait_status) == 3
