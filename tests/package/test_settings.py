"""Options and their environment variables: what is wrong is named, with what it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuscale.catalogue import DEFAULT_BUCKETS
from gpuscale.errors import ConfigurationError
from gpuscale.settings import DEFAULT_EXCLUDED_PATHS, Settings


def test_defaults() -> None:
    settings = Settings.create({})
    assert settings.port == 9445
    assert settings.gpu == "nvml"
    assert settings.excluded_paths == DEFAULT_EXCLUDED_PATHS
    assert settings.buckets == DEFAULT_BUCKETS


def test_options_win_over_the_environment_and_it_over_defaults() -> None:
    environ = {
        "GPUSCALE_PORT": "9000",
        "GPUSCALE_GPU": "simulated",
        "GPUSCALE_BUCKETS": "0.1,1,+Inf",
        "GPUSCALE_ADDRESS": "",
    }
    settings = Settings.create(environ, port=9001, gpu=None, excluded_paths=["/probe"])
    assert settings.port == 9001
    assert settings.gpu == "simulated"
    assert settings.buckets == (0.1, 1.0)
    assert settings.excluded_paths == ("/probe",)
    assert settings.address == "0.0.0.0"
    assert Settings.create({"GPUSCALE_EXCLUDED_PATHS": "/a, /b"}).excluded_paths == ("/a", "/b")


def test_metrics_on_the_app_are_there_whatever_is_excluded() -> None:
    assert Settings.create({"GPUSCALE_ON_APP": "true"}, excluded_paths=["/a"]).excluded_paths == (
        "/a", "/metrics", "/metrics/",
    )  # fmt: skip
    assert Settings.create({}, on_app=True).excluded_paths == DEFAULT_EXCLUDED_PATHS


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("port", 70000, "port from 0 to 65535"),
        ("port", "http", "port from 0 to 65535"),
        ("port", True, "port from 0 to 65535"),
        ("port", 80.5, "port from 0 to 65535"),
        ("address", "example", "IP address"),
        ("gpu", "amd", "one of nvml, simulated, none"),
        ("excluded_paths", ["healthz"], "start with /"),
        ("excluded_paths", 3, "paths such as"),
        ("buckets", (1.0, 0.5), "ascending"),
        ("buckets", (), "ascending"),
        ("buckets", (-1.0, 1.0), "ascending"),
        ("buckets", ("x",), "ascending"),
        ("buckets", tuple(range(1, 66)), "at most 64"),
        ("on_app", "maybe", "true or false"),
        ("gpu_interval", 0, "seconds from 0.05"),
        ("gpu_window", "long", "seconds from 0.05"),
        ("run_dir", "relative", "absolute path"),
        ("token_file", "/does/not/exist", "file that can be read"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=wanted) as raised:
        Settings.create({}, **{name: value})
    assert name in str(raised.value)
    if not isinstance(value, (bool, tuple, list)):
        with pytest.raises(ConfigurationError, match=f"GPUSCALE_{name.upper()}"):
            Settings.create({f"GPUSCALE_{name.upper()}": str(value)})


def test_options_that_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigurationError, match="tls_cert and tls_key"):
        Settings.create({}, tls_cert=str(file))
    with pytest.raises(ConfigurationError, match="on_app opens none"):
        Settings.create({}, on_app=True, token_file=str(file))
    with pytest.raises(ConfigurationError, match=r"gpu_interval .* gpu_staleness"):
        Settings.create({}, gpu_interval=20)
