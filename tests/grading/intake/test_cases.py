"""The table of what classes really send (cases.toml): everybody has their own work, and no file is lost silently."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from grading.intake.making import CASES, ROOT, content, make
from typer.testing import CliRunner

from labsupport.cli import app
from labsupport.grading.intake.folder_name import name_of
from labsupport.grading.intake.history import long_names


def there(out: Path) -> dict[str, bytes]:
    long = long_names(out)
    return {
        f"{name_of(path.parent.name, long)} / {path.stem.partition('_')[0]}": path.read_bytes()
        for path in out.glob("*/*.ipynb")
    }


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_everybody_has_their_own_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    monkeypatch.chdir(ROOT)
    sources, out = make(case, tmp_path / "in"), tmp_path / "out"
    more = list(case.get("args", []))
    if "roster" in case:
        (tmp_path / "roster.csv").write_text(case["roster"], encoding="utf-8")
        more += ["--roster", str(tmp_path / "roster.csv")]
    for kinds in case.get("runs", [list(sources)]):
        paths = [str(sources[kind]) for kind in kinds]
        result = CliRunner().invoke(app, ["collect", *paths, "--out", str(out), *more])
    assert result.exit_code == case.get("rc", 0), result.output
    found = there(out)
    assert found.keys() == case["has"].keys(), result.output
    for key, text in case["has"].items():
        assert found[key] == content(text) or text.endswith("*"), (key, result.output)
    for phrase in case.get("says", []):
        assert phrase in result.output, (phrase, result.output)
    assert not [phrase for phrase in case.get("not", []) if phrase in result.output]
    with open(out / "collected.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["run"] == rows[-1]["run"]]
    assert len(last) == case.get("files", sum(len(case[kind]) for kind in kinds)), "one row for every file"
    assert max(Counter(row["source"] for row in last).values()) == 1 and all(row["decision"] for row in last)
    assert all(row["reason"] for row in last if row["decision"] not in ("kept", "unchanged"))


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 80 and len({case["name"] for case in CASES}) == len(CASES)
