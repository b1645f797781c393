from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from labsupport import requirements


def test_without_a_checkout_requirements_come_from_the_metadata(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declared = ["torch>=2.9", 'jupyterlab>=4; extra == "lab"', 'nbval; extra == "test"']
    monkeypatch.setattr(requirements, "PACKAGE", tmp_path / "labsupport")
    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    assert [each.name for each in requirements.declared(None)] == ["torch"]
    assert [each.name for each in requirements.declared("lab")] == ["jupyterlab"]
    assert requirements.pip_install("lab").startswith('python -m pip install "labsupport[lab] @ git+https://')
