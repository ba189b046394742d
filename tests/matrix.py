"""Run the library's tests on every Python 3.10-3.13 that is installed, each in an environment of its own.

    python tests/matrix.py [--skip 3.11] [-- PYTEST-ARGUMENT ...]

The reference service and its model are tested on the main Python only (make test): torch once is enough.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
LIBRARY_TESTS = (
    "tests/package",
    "tests/requests",
    "tests/middleware",
    "tests/publish",
    "tests/gpu",
    "tests/nvml_stub",
    "tests/sidecar",
)


def works(python: str, version: str) -> bool:
    """Whether this is really that version: pyenv leaves commands that only print an error."""
    probe = [python, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version


def find(version: str) -> str | None:
    """An interpreter of this version: on PATH, or one of pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += [str(path) for path in sorted(root.glob(f"versions/{version}*/bin/python"), reverse=True)]
    return next((python for python in candidates if python and works(python, version)), None)


def environment(python: str, version: str) -> Path:
    """The interpreter of a virtual environment with the library's test requirements, made when they change."""
    folder = ROOT / f".venv-{version}"
    special = ROOT / f"constraints-{version}.txt"
    constraints = special if special.exists() else ROOT / "constraints.txt"
    wanted = [ROOT / "tests/requirements.txt", constraints, ROOT / "pyproject.toml"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in wanted)).hexdigest()
    stamp = folder / "requirements.sha256"
    interpreter = folder / "bin/python"
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), "-r", "tests/requirements.txt", "-e", "."], check=True, cwd=ROOT)
        stamp.write_text(digest)
    return interpreter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", action="append", default=[], metavar="VERSION", help="tested elsewhere already")
    parser.add_argument("pytest", nargs="*", default=[])
    options = parser.parse_args()
    failed = []
    for version in VERSIONS:
        if version in options.skip:
            continue
        python = find(version)
        if python is None:
            print(f"== Python {version}: not installed, not tested", flush=True)
            continue
        print(f"== Python {version}: {python}", flush=True)
        interpreter = environment(python, version)
        tests = [str(ROOT / path) for path in LIBRARY_TESTS if (ROOT / path).is_dir()]
        if subprocess.run([interpreter, "-m", "pytest", *tests, *options.pytest], cwd=ROOT).returncode:
            failed.append(version)
    if failed:
        print(f"== failed on Python {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
