"""Programs of other people against the server: benchmarks/clients.py, in an environment of its own (`make`)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("LABSUPPORT_CLIENTS_PYTHON", "")
pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(PYTHON or "nowhere").exists(),
        reason="no environment with the clients: `make test-clients` makes it, if they can be installed",
    ),
]
CLIENTS = ("openai", "litellm", "langchain-openai", "llama-index", "instructor", "lm-eval", "guidellm")
REFUSED = {"tools", "structured output", "tools (its default)", "JSON mode", "name of a message"}


@pytest.fixture(scope="module")
def table(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Outcomes by client and feature."""
    log = tmp_path_factory.mktemp("clients") / "errors.txt"
    with log.open("w") as errors:
        command = [PYTHON, "benchmarks/clients.py"]
        done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert done.returncode == 0, log.read_text()[-3000:]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", done.stdout, flags=re.MULTILINE)
    found: dict[str, dict[str, str]] = {}
    for client, feature, outcome in rows:
        found.setdefault(client, {})[feature] = outcome
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_each_feature_works_or_is_refused_with_the_right_words(table: dict[str, dict[str, str]], client: str) -> None:
    assert table[client]
    for feature, outcome in table[client].items():
        assert outcome.startswith("refused: " if feature in REFUSED else "works"), (feature, outcome)
