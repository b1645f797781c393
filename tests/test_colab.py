"""The quick tests of some folders once more, with Colab's older packages (`make test` builds that environment)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

# Where an older package can make a difference: ipywidgets, IPython, matplotlib, pandas, tokenizers, Numba, typer. What
# only uses torch is the same in both environments.
AGAIN = ("lm", "quantization", "widgets", "grading", "notebooks/test_exercises.py", "test_cli.py", "test_doctor.py")

PYTHON = os.environ.get("LABSUPPORT_COLAB_PYTHON", "")
pytestmark = [
    pytest.mark.colab,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LABSUPPORT_COLAB_PYTHON is not set; `make test` sets it"),
]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In the Colab-like environment, without what this run of pytest put into the environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run([PYTHON, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_environment_holds_the_pinned_versions(root: Path) -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (root / "constraints-colab.txt").read_text(), flags=re.MULTILINE))
    assert pins["ipywidgets"] == "7.7.1"
    code = f"from importlib.metadata import version; print({{name: version(name) for name in {list(pins)}}} == {pins})"
    outcome = run("-c", code, cwd=root)
    assert outcome.stdout.strip() == "True", outcome.stdout + outcome.stderr


def test_quick_tests_pass(root: Path) -> None:
    arguments = ("-m", "not smollm2 and not browser and not slow and not colab", "-p", "no:cacheprovider", "-q")
    outcome = run("-m", "pytest", *arguments, *(f"tests/{name}" for name in AGAIN), cwd=root)
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-2000:]
