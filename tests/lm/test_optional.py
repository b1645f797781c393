from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from labsupport.lm import load_lm, measured_or_recorded, optional, optional_smollm2

TABLE = pd.DataFrame({"perplexity": {"float32": 15.4258, "4 bits": 20.0}, "kept": {"float32": True, "4 bits": False}})


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(optional, "RECORDS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "switch", "loads"),
    [("", False, False), ("", True, True), ("0", True, False), ("1", False, True), (None, True, True)],
)
def test_the_variable_overrides_the_switch(monkeypatch, capsys, variable, switch, loads) -> None:
    if variable is None:
        monkeypatch.delenv("LABSUPPORT_SMOLLM2", raising=False)
    else:
        monkeypatch.setenv("LABSUPPORT_SMOLLM2", variable)
    monkeypatch.setattr(optional, "load_lm", lambda name, device: f"loaded {name}")
    assert optional_smollm2(switch) == ("loaded smollm2-135m" if loads else None)
    assert ("Set SMOLLM2 = True" in capsys.readouterr().out) is not loads


def test_a_table_comes_back_as_it_was_recorded(records: Path, monkeypatch, capsys) -> None:
    tiny = load_lm("tiny", verbose=False)
    monkeypatch.setenv("LABSUPPORT_RECORD", "1")
    assert measured_or_recorded("some-table", tiny, lambda: TABLE) is TABLE
    assert "Measured here: tiny" in capsys.readouterr().out
    pd.testing.assert_frame_equal(measured_or_recorded("some-table", None, lambda: pd.DataFrame()), TABLE)
    assert "Recorded, not measured here: tiny" in capsys.readouterr().out


def test_measuring_leaves_the_record_alone(records: Path, monkeypatch) -> None:
    monkeypatch.delenv("LABSUPPORT_RECORD", raising=False)
    measured_or_recorded("some-table", load_lm("tiny", verbose=False), lambda: TABLE)
    assert list(records.iterdir()) == []


def test_an_unknown_record_is_named(records: Path) -> None:
    (records / "known.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\(known\); got 'unknown'"):
        measured_or_recorded("unknown", None, lambda: TABLE)


def test_every_record_of_the_course_can_be_read(capsys) -> None:
    for path in sorted(optional.RECORDS.glob("*.json")):
        table = measured_or_recorded(path.stem, None, lambda: TABLE)
        assert table.shape == tuple(map(len, (json.loads(path.read_text())["index"], table.columns)))
        assert "smollm2-135m" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(optional.RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_each_record_says_on_what_it_was_measured(path: Path) -> None:
    where = json.loads(path.read_text(encoding="utf-8"))["where"]
    assert re.fullmatch(r"smollm2-135m from .+; \S+, \d+ thread\(s\), torch \S+", where), where
