"""Ruff and mypy are tests like any other."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDERS = ("labsupport", "tests", "benchmarks")
CHECKS = {
    "lint": ("ruff", "check"),
    "format": ("ruff", "format", "--check"),
    "types": ("mypy",),
}


@pytest.mark.parametrize("check", ["lint", "format", pytest.param("types", marks=pytest.mark.slow)])
def test_code_passes(check: str, root: Path) -> None:
    tool, *arguments = CHECKS[check]
    if find_spec(tool) is None:
        pytest.fail(f'{tool} is not installed: python -m pip install -e ".[test]"')
    folders = [name for name in FOLDERS if any((root / name).glob("**/*.py"))]
    command = [sys.executable, "-m", tool, *arguments, *folders]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert outcome.returncode == 0, "\n".join(line[:300] for line in (outcome.stdout + outcome.stderr).splitlines())
