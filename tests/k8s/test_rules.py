"""promtool's judgement of the rules: syntax, and what they make of given series."""

import shutil
import subprocess
from pathlib import Path

import pytest

K8S = Path(__file__).parents[2] / "k8s"
HERE = Path(__file__).parent


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    cached = Path.home() / ".cache/gpuscale-cluster/bin/promtool"
    program = str(cached) if cached.exists() else shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: the Debian package prometheus, or a release of Prometheus, on PATH")
    return subprocess.run([program, *arguments], cwd=HERE, capture_output=True, text=True, timeout=120)


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(K8S / "rules/gpuscale.rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_scrape_configuration() -> None:
    done = promtool("check", "config", "--syntax-only", str(K8S / "prometheus/prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_make_of_series_what_they_should() -> None:
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
