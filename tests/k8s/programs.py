"""Programs that judge our manifests: on PATH, or those that the cluster beside this repository has compiled."""

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILED = Path.home() / ".cache/gpuscale-cluster/bin"
WANTED = {
    "promtool": "the Debian package prometheus, or a release of Prometheus",
    "kubectl": "kubectl 1.27 or newer, for `kubectl kustomize`",
}


def run(program: str, *arguments: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of WANTED; skip the test, saying what to install, where it is not there."""
    found = str(COMPILED / program) if (COMPILED / program).exists() else shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program} on PATH: {WANTED[program]}")
    return subprocess.run([found, *arguments], cwd=where, capture_output=True, text=True, timeout=120)
