"""on_a_pretended_gpu.py in a process of its own: PyTorch counts devices when it first computes gradients, and takes
no notice of one that is pretended later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("length", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_public_function(root: Path, length: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", length]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, str(root / "tests" / "on_a_pretended_gpu.py")], cwd=root, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
