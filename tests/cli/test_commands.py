"""The table of commands, exit statuses, and that the list of commands stays quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpuscale import cli


def test_a_command_is_listed_once_its_module_exists() -> None:
    listed = cli.available()
    assert {"sidecar", "run", "top"} <= set(listed)
    for name in listed:
        with pytest.raises(SystemExit) as end:
            cli.main([name, "--help"])
        assert end.value.code == 0


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in cli.available())


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["scale-it"])
    assert end.value.code == 2
    assert "sidecar" in capsys.readouterr().err


def test_python_m_and_the_version() -> None:
    import gpuscale

    done = subprocess.run([sys.executable, "-m", "gpuscale", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"gpuscale {gpuscale.__version__}\n")


def test_the_help_loads_no_command() -> None:
    code = (
        "import sys\nfrom gpuscale import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'prometheus_client', 'rich', 'asyncio', 'ssl', 'pynvml', 'h11', 'yaml', 'http.client'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m gpuscale sidecar --help | true; {sys.executable} -m gpuscale --help | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
