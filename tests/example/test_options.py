"""Options, CPU budgets, the first lines and wrong usage."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from bert_intent.cpus import available_cpus, threads_for
from bert_intent.settings import ServiceSettings, SettingsError

command = import_module("bert_intent.__main__")


def test_variables_win_over_defaults() -> None:
    settings = ServiceSettings.from_environment({"BERT_QUEUE_LIMIT": "100", "BERT_MODEL": "/m", "BERT_DEVICE": ""})
    assert (settings.queue_limit, settings.model, settings.device) == (100, "/m", "auto")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BERT_QUEUE_LIMIT", "63"),
        ("BERT_QUEUE_LIMIT", "many"),
        ("BERT_MAX_BATCH", "0"),
        ("BERT_THREADS", "-1"),
        ("BERT_THREADS", "1.5"),
        ("BERT_DEVICE", "gpu"),
        ("BERT_DEVICE", "cuda:"),
        ("BERT_DRAIN_SECONDS", "nan"),
        ("BERT_DRAIN_SECONDS", "25"),
        ("BERT_GRACE_SECONDS", "soon"),
        ("BERT_PORT", "65536"),
        ("BERT_WORKERS", "0"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        ServiceSettings.from_environment({variable: value})


def test_wrong_usage_ends_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BERT_PORT", "")
    assert command.main(["--port", "http"]) == 2
    assert "BERT_PORT must be a whole number" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        command.main(["--no-such-flag"])
    assert end.value.code == 2


def test_the_first_lines_say_that_the_gpu_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DRIVER_FILES", ("/no/such/driver",))
    settings = ServiceSettings(host="0.0.0.0", port=8080)
    environ: dict[str, str] = {}
    lines = command.first_lines(settings, environ, simulate_without_gpu=True)
    assert environ == {"GPUSCALE_GPU": "simulated"}
    assert any("SIMULATED" in line and "own CPU time" in line for line in lines[:3])
    assert any("http://127.0.0.1:8080/predict?query=music" in line for line in lines)


def test_a_gpu_is_simulated_only_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "DRIVER_FILES", ("/no/such/driver",))
    environ: dict[str, str] = {}
    lines = command.first_lines(ServiceSettings(), environ, simulate_without_gpu=False)
    assert environ == {}
    assert any("nvidia_gpu_num_devices is 0" in line for line in lines)
    environ = {"GPUSCALE_GPU": "none"}
    assert len(command.first_lines(ServiceSettings(), environ, simulate_without_gpu=True)) == 1
    assert environ == {"GPUSCALE_GPU": "none"}
    monkeypatch.setattr(command, "DRIVER_FILES", (str(tmp_path),))
    environ = {}
    assert len(command.first_lines(ServiceSettings(), environ, simulate_without_gpu=True)) == 1
    assert environ == {}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cgroup", "cpus"),
    [
        ({"cpu.max": "50000 100000"}, "0::/\n", 0.5),
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "25000 100000"}, "0::/a/b\n", 0.25),
        ({"cpu.max": "30000 100000"}, "0::/only/on/the/host\n", 0.3),
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "10000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/x\n3:memory:/y\n", 0.1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", None),
        ({}, "", None),
    ],
)  # fmt: skip
def test_cpus_are_what_the_cgroup_leaves(
    tmp_path: Path, files: dict[str, str], cgroup: str, cpus: float | None
) -> None:
    _write(tmp_path / "proc/self/cgroup", cgroup)
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text)
    unlimited = available_cpus(tmp_path / "none", tmp_path / "none")
    assert unlimited >= 1
    assert available_cpus(tmp_path / "proc", tmp_path / "cgroup") == (unlimited if cpus is None else cpus)


def test_workers_share_the_cpus() -> None:
    assert [threads_for(workers, 8.0) for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert threads_for(1, 0.5) == 1
