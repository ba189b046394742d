"""The public names, what importing costs, and the wheel that installs and works alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import gpuscale

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_exported_names_are_these() -> None:
    """Adding or removing one is a decision, not an accident."""
    assert gpuscale.__all__ == [
        "ConfigurationError",
        "GpuIdentity",
        "GpuReading",
        "GpuSnapshot",
        "GpuscaleError",
        "Metrics",
        "MissingExtraError",
        "SourceUnavailableError",
        "__version__",
        "asgi",
        "instrument",
        "wsgi",
    ]
    for name in gpuscale.__all__:
        assert getattr(gpuscale, name) is not None


def test_importing_a_home_first_does_not_hide_the_function() -> None:
    code = "import gpuscale.mounting, gpuscale; assert callable(gpuscale.instrument)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


IMPORT = """
import sys, threading, os, json
before = set(sys.modules)
files = os.listdir("/proc/self/fd")
import gpuscale
print(json.dumps({
    "new": sorted(set(sys.modules) - before),
    "threads": threading.active_count(),
    "files": len(os.listdir("/proc/self/fd")) - len(files),
}))
"""


def test_importing_loads_nothing_and_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert [name for name in found["new"] if not name.startswith("gpuscale")] in ([], ["__future__"])
    assert found["new"][-1] == "gpuscale"
    assert found["threads"] == 1
    assert found["files"] == 0


def test_the_middlewares_load_no_prometheus_client_and_no_driver_before_they_start() -> None:
    code = "import sys, gpuscale.asgi, gpuscale.wsgi; print({'prometheus_client', 'pynvml'} & set(sys.modules) or [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


USE = """
import urllib.request, gpuscale
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
metrics = gpuscale.instrument(app, port=0, address="127.0.0.1", gpu="nvml")
list(metrics.app({"PATH_INFO": "/x", "REQUEST_METHOD": "GET"}, lambda *_: None))
page = urllib.request.urlopen(metrics.metrics_url, timeout=10).read().decode()
assert 'gpuscale_requests_total{method="GET",route="unmatched",status="200"} 1.0' in page, page
assert "nvidia_gpu_num_devices 0.0" in page, page
metrics.close()
import importlib.metadata, pathlib
assert pathlib.Path(gpuscale.__file__).is_relative_to(pathlib.Path(__import__("sys").prefix)), gpuscale.__file__
assert (pathlib.Path(gpuscale.__file__).parent / "py.typed").exists()
wanted = [line for line in importlib.metadata.requires("gpuscale") if "extra" not in line]
assert sorted(line.split(">")[0] for line in wanted) == ["nvidia-ml-py", "prometheus-client"], wanted
"""


def test_the_wheel_installs_and_works_alone(tmp_path: Path) -> None:
    """Built from the tree, installed with its two dependencies into an empty environment, used from elsewhere."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True, timeout=300)
    wheels = list(tmp_path.glob("gpuscale-*.whl"))
    assert len(wheels) == 1
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    install = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-q",
        "install",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*install, wheels[0]], check=True, timeout=300)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    command = [str(tmp_path / "env/bin/gpuscale"), "--help"]
    help_text = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert help_text.returncode == 0
    assert "sidecar" in help_text.stdout
