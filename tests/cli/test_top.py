"""``gpuscale top`` against real endpoints, in a pseudo-terminal too."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gpuscale import cli
from gpuscale.cli.top import endpoint_url
from gpuscale.cli.top_scrape import Scraper, compare, parse
from gpuscale.errors import ConfigurationError
from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot
from gpuscale.publish.collector import MetricsCollector, render
from gpuscale.publish.endpoint import MetricsServer, Response
from gpuscale.requests.totals import RequestTotals


class Pod:
    """An endpoint with two GPUs, one of them down, and requests; its numbers grow with the number of scrapes."""

    def __init__(self) -> None:
        self.looks = 0
        self.collector = MetricsCollector(self.snapshot, self.totals, mode="sidecar")
        self.server = MetricsServer(address="127.0.0.1", port=0, handlers={"/metrics": self.page})
        self.server.start()

    def snapshot(self) -> GpuSnapshot:
        good = GpuReading(
            GpuIdentity("GPU-a", "NVIDIA Test", "0"), True, sample_age_seconds=0.1, duty_cycle=20.0,
            busy_seconds=100.0 + 0.05 * self.looks, memory_used_bytes=2 << 30, memory_total_bytes=8 << 30,
            temperature_celsius=41.0, power_milliwatts=70500.0, utilization_method="samples",
        )  # fmt: skip
        return GpuSnapshot("nvml", (good, GpuReading(GpuIdentity("GPU-b", "Other", "1"), False)), decided_by="explicit")

    def totals(self) -> RequestTotals:
        return RequestTotals(
            3.0, 10.0 + 0.2 * self.looks,
            {("GET", "/a", "200"): 50.0 + 10 * self.looks, ("GET", "/a", "503"): 1.0 + self.looks},
            {("GET", "/a"): [*[0.0] * 12, 50.0 + 11 * self.looks, 5.0 + 1.1 * self.looks]},
        )  # fmt: skip

    def page(self, headers: Mapping[str, str]) -> Response:
        self.looks += 1
        body, content_type = render(self.collector, headers.get("accept", ""))
        return Response(200, content_type, body)


@pytest.fixture
def pod() -> Iterator[Pod]:
    pod = Pod()
    yield pod
    pod.server.close()


def test_once_in_json(pod: Pod, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert cli.main(["top", "--once", "--json", "--interval", "0.2", pod.server.url]) == 0
    passed = time.monotonic() - begun
    (view,) = json.loads(capsys.readouterr().out)
    assert view["error"] is None
    assert view["info"]["mode"] == "sidecar"
    assert view["in_flight"] == 3.0
    up, down = view["gpus"]
    assert (up["power_watts"], up["memory_used_bytes"], down["up"]) == (70.5, 2 << 30, False)
    assert down["utilization_percent"] is None
    # 0.05 busy seconds, 11 requests and 0.2 request seconds between the looks, which were this far apart at most.
    assert 100 * 0.05 / passed <= up["utilization_percent"] <= 100 * 0.05 / 0.2 + 1
    assert 11 / passed <= view["requests_per_second"] <= 11 / 0.2 + 1
    assert view["errors_per_second"] == pytest.approx(view["requests_per_second"] / 11)
    assert view["mean_seconds"] == pytest.approx(0.1)
    assert view["mean_in_flight"] == pytest.approx(0.2 * view["requests_per_second"] / 11)


def test_once_for_people(pod: Pod, capsys: pytest.CaptureFixture[str]) -> None:
    address = pod.server.url.removeprefix("http://").removesuffix("/metrics")
    assert cli.main(["top", "--once", "--interval", "0.1", address, "127.0.0.1:1"]) == 0
    out = capsys.readouterr().out
    for word in ("in flight 3", "NVIDIA Test", "2.0 / 8.0", "down", "sidecar · nvml", "refused"):
        assert word in out


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", "--interval", "0.1", "127.0.0.1:1"]) == 1
    assert cli.main(["top", "--once", "--json", "--interval", "0.1", "127.0.0.1:1"]) == 1
    assert "refused" in capsys.readouterr().out


def test_an_endpoint_that_wants_a_token(pod: Pod, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    server = MetricsServer(address="127.0.0.1", port=0, handlers={"/metrics": pod.page}, token_file=str(token))
    server.start()
    try:
        command = ["top", "--once", "--json", "--interval", "0.1", server.url]
        assert cli.main(command) == 1
        assert json.loads(capsys.readouterr().out)[0]["error"].startswith("HTTP 401")
        assert cli.main([*command, "--token-file", str(token)]) == 0
        assert json.loads(capsys.readouterr().out)[0]["error"] is None
    finally:
        server.close()


def test_live_in_a_terminal(pod: Pod) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="30")
        os.execv(sys.executable, [sys.executable, "-m", "gpuscale", "top", "--interval", "0.1", pod.server.url])
    output = b""
    end = time.monotonic() + 30
    try:
        while (b"NVIDIA Test" not in output or pod.looks < 4) and time.monotonic() < end:
            output += os.read(terminal, 65536)
        os.kill(pid, signal.SIGINT)
        while time.monotonic() < end:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
    finally:
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)  # it hangs: the status below says so
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"NVIDIA Test" in output
    assert b"\x1b[?1049h" in output, "a screen of its own"
    assert b"\x1b[?1049l" in output, "and the old one comes back"
    assert b"Traceback" not in output


def test_a_restart_between_the_looks_gives_no_rate() -> None:
    before = parse('gpuscale_requests_total{status="200"} 10\ngpuscale_in_flight_seconds_total 5\n', 1.0)
    after = parse('gpuscale_requests_total{status="200"} 1\ngpuscale_in_flight_seconds_total 6\n', 2.0)
    view = compare("x", before, after)
    assert view.requests_per_second is None
    assert view.mean_in_flight == 1.0


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.7", "http://10.0.0.7:9445/metrics"),
        ("10.0.0.7:80", "http://10.0.0.7:80/metrics"),
        ("https://pod.local", "https://pod.local/metrics"),
        ("http://a:1/other", "http://a:1/other"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert endpoint_url(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "http://", "http://x:99999"])
def test_wrong_urls_are_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", text]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", "--interval", "0"]) == 2
    assert "--interval" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="--token-file"):
        Scraper(["http://x"], token_file="/nowhere")


def test_without_rich_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["top", "--once"]) == 1
    assert "gpuscale[cli]" in capsys.readouterr().err
