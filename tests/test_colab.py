"""Some of the quick tests once more, with Colab's older packages (`make test` builds that environment)."""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

# Where an older package can make a difference, and which. All else is decided by torch, the same in both environments.
AGAIN = (
    "widgets",  # ipywidgets 7, matplotlib, IPython 7
    "notebooks/test_exercises.py",  # nbval in IPython 7
    "lm/test_load.py",  # huggingface_hub, safetensors
    "lm/test_gguf.py",  # tokenizers
    "quantization/fast",  # Numba
    "grading/sandbox/test_sandbox.py",  # the kernel of the sandbox: IPython 7
    "grading/test_release.py",  # nbformat
    "test_cli.py",  # typer
    "test_doctor.py",
)

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


def test_quick_tests_pass(root: Path, tmp_path: Path) -> None:
    files = [f"tests/{name}" for name in AGAIN]
    arguments = ("-m", "not smollm2 and not browser and not slow and not colab", "-p", "no:cacheprovider", "-q")
    outcome = run("-m", "pytest", *arguments, f"--junitxml={tmp_path / 'report.xml'}", *files, cwd=root)
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-2000:]
    cases = ElementTree.parse(tmp_path / "report.xml").iter("testcase")
    ran = {case.get("classname", "") for case in cases if case.find("skipped") is None}
    for name in AGAIN:  # one that our own -m deselects would pass for good
        module = f"tests.{name.removesuffix('.py').replace('/', '.')}"
        assert any(f"{case}.".startswith(f"{module}.") for case in ran), f"nothing of {name} ran"
