"""promtool's judgement of the rules: syntax, and what they make of given series."""

from pathlib import Path

import pytest

from tests.k8s.programs import run

K8S = Path(__file__).parents[2] / "k8s"
HERE = Path(__file__).parent


def test_promtool_accepts_the_rules() -> None:
    done = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(K8S / "rules/gpuscale.rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_scrape_configuration() -> None:
    done = run("promtool", "check", "config", "--syntax-only", str(K8S / "prometheus/prometheus.yml"))
    if "field kubernetes_sd_configs not found" in done.stderr:
        pytest.skip("this promtool is built without Kubernetes' discovery (Debian's is): take Prometheus' own release")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_make_of_series_what_they_should() -> None:
    done = run("promtool", "test", "rules", "rules_test.yaml", where=HERE)
    assert done.returncode == 0, done.stdout + done.stderr
