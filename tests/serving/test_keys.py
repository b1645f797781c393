from __future__ import annotations

from pathlib import Path

import pytest

from labsupport.serving.keys import ApiKeys, read_keys


@pytest.mark.parametrize(
    ("header", "allowed"),
    [("Bearer b", True), ("bearer  b ", True), ("Bearer x", False), ("Basic b", False), ("b", False), ("", False)],
)
def test_only_a_known_key_as_a_bearer_token_is_allowed(header: str, allowed: bool) -> None:
    assert ApiKeys(["a", "b"]).allow(header) is allowed
    assert ApiKeys([]).allow(header), "without keys everybody has access"


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n a \n# c\nb\n")
    assert read_keys(path) == ["a", "b"] and read_keys(None) == []
