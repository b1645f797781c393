"""Whatever the names, and in whatever order and however often files are collected: one result, everybody's own."""

from __future__ import annotations

import os
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labsupport.grading.intake.collect import collect
from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.history import long_names
from labsupport.grading.intake.spelling import name_key
from labsupport.grading.intake.zip_names import mended

EXERCISES = ["ex01_int8_symmetric", "ex02_kv_cache_size"]
SCRIPTS = ("राम", "रिम", "रुम", "กา", "กี", "José", "Jose\u0301", "JOSÉ", "Jose", "Weiß", "Weiss", "WEISS", "李雷",
           "Νίκος", "ΝΊΚΟΣ", "می\u200cرا", "میرا", "İpek", "ipek", "Ipek", "a%41", "aA", "CON", "con.txt", "~",
           "x" * 120, "ก" * 80, "Ann Lee", "ann  lee", "ann_lee", "🦊", "👩‍🔬", "-rf", "=1+1", ".x", "a.",
           "a")  # fmt: skip
anything = st.text(st.characters(exclude_characters="/\\\0:", exclude_categories=["Cs"]), min_size=1, max_size=12)
names = (st.sampled_from(SCRIPTS) | anything).filter(
    lambda name: (
        name_key(name).strip(" .")
        and not name.startswith(("._", ".git", "submi"))
        and len(name.encode()) < 250
        and mended(name) == name
    )
)
files = st.lists(
    st.tuples(names, st.sampled_from(EXERCISES), st.integers(0, 3)), min_size=1, max_size=8, unique_by=lambda f: f
)


def make_zip(path: Path, entries: list[tuple[str, str, int]]) -> Path:
    """The content says whose it is, so that a file in the wrong folder shows."""
    with zipfile.ZipFile(path, "w") as archive:
        for where, content, day in entries:
            archive.writestr(zipfile.ZipInfo(where, (2026, 1, 1 + day, 0, 0, 0)), content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.ipynb"))}


def collected(entries: list[tuple[str, str, int]], runs: list[int], place: Path) -> Path:
    """Collect entry i in run ``runs[i]``."""
    out = place / f"out{len(list(place.iterdir()))}"
    for run in sorted(set(runs)):
        part = [entry for entry, when in zip(entries, runs, strict=True) if when == run]
        told = collect([make_zip(place / "part.zip", part)], out, EXERCISES).entries
        assert len([row for row in told if row.decision != "moved"]) == len(part), "one row for every file"
    return out


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=files, data=st.data())
def test_one_result_in_any_order_and_nobody_has_anothers_work(files, data):
    entries = [(f"{name}/{exercise}.ipynb", f"{name_key(name)}\0{name}\0{day}", day) for name, exercise, day in files]
    orders = [data.draw(st.lists(st.integers(0, 4), min_size=len(entries), max_size=len(entries))) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        outs = [collected(entries, order, place) for order in ([0] * len(entries), *orders)]
        outs.append(collected(entries * 2, [*orders[0], *(9 - run for run in orders[0])], place))
        first, *others = map(tree, outs)
        assert all(other == first for other in others)
        assert len(first) == len({(name_key(name), exercise) for name, exercise, _ in files})
        long = long_names(outs[0])
        for path, data_ in first.items():
            assert name_key(name_of(path.split("/")[0], long)) == data_.decode().partition("\0")[0]
        newest = {}
        for name, exercise, day in files:
            newest[name_key(name), exercise] = max(newest.get((name_key(name), exercise), 0), day)
        for path, data_ in first.items():
            key, _, day = data_.decode().rpartition("\0")
            assert newest[key.partition("\0")[0], path.split("/")[1].removesuffix(".ipynb")] == int(day)


namesakes = st.sampled_from(["Ann Lee", "ann lee", "Jane Doe", "राम"])
people = st.lists(
    st.tuples(namesakes, st.integers(1, 3), st.sampled_from(EXERCISES)),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(people=people, data=st.data())
def test_moodles_namesakes_end_in_the_same_folders_in_any_order(people, data):
    entries = [
        (f"{name}_{number}_assignsubmission_file_/{exercise}.ipynb", f"{name_key(name)}|{number}", 0)
        for name, number, exercise in people
    ]
    order = data.draw(st.lists(st.integers(0, 4), min_size=len(entries), max_size=len(entries)))
    with tempfile.TemporaryDirectory() as folder:
        outs = [collected(entries, runs, Path(folder)) for runs in ([0] * len(entries), order)]
        assert tree(outs[0]) == tree(outs[1])
        assert len(tree(outs[0])) == len({(name_key(name), number, exercise) for name, number, exercise in people})


@given(st.lists(names, min_size=2, max_size=6))
def test_two_names_never_share_a_folder_and_every_folder_tells_its_name(names):
    folders = {}
    for name in names:
        whole = unicodedata.normalize("NFC", name).strip()
        folder = folder_of(name)
        assert folders.setdefault(folder, whole) == whole and len(folder.encode()) <= 200
        assert "~" in folder or name_of(folder) == whole
        assert not set(folder) & set('/\\:*?"<>|\0') and folder[:1] not in (".", "-", "~", " ")


@pytest.mark.parametrize("change", ["edited by hand", None])
def test_a_file_that_was_changed_by_hand_is_not_replaced(tmp_path, change):
    source = make_zip(tmp_path / "a.zip", [("alice/ex01.ipynb", "old", 0)])
    collect([source], tmp_path / "out", EXERCISES)
    target = tmp_path / "out" / "alice" / "ex01_int8_symmetric.ipynb"
    if change is None:
        target.unlink()
    else:
        target.write_text(change)
    again = collect([make_zip(tmp_path / "b.zip", [("alice/ex01.ipynb", "new", 3)])], tmp_path / "out", EXERCISES)
    assert target.read_text() == (change or "new") and again.complete == (change is None)
    assert change is None or "was changed since" in str(again)


def test_a_dry_run_shows_every_decision_and_writes_nothing(tmp_path):
    source = make_zip(tmp_path / "a.zip", [("alice/ex01.ipynb", "x", 0), ("alice/ex01.py", "y", 0)])
    would = collect([source], tmp_path / "out", EXERCISES, dry_run=True)
    assert not (tmp_path / "out").exists() and "left out!" in would.table() and "kept" in would.table()
    did = collect([source], tmp_path / "out", EXERCISES)
    assert [(e.source, e.decision) for e in did.entries] == [(e.source, e.decision) for e in would.entries]


def test_the_log_keeps_all_runs(tmp_path):
    source = make_zip(tmp_path / "a.zip", [("alice/ex01.ipynb", "x", 0)])
    for _ in range(3):
        collect([source], tmp_path / "out", EXERCISES)
    from labsupport.grading.intake.history import read_log

    assert [entry.decision for entry in read_log(tmp_path / "out")] == ["kept", "unchanged", "unchanged"]
