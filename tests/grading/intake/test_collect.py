"""Submissions are found in every usual layout, nobody can hand in for someone else, and nothing is written outside."""

from __future__ import annotations

import csv
import os
import stat
import unicodedata
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest

from labsupport.grading.intake import archives, found, incoming
from labsupport.grading.intake.collect import collect
from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.names import read_name, wrapper
from labsupport.grading.intake.outcome import Collection
from labsupport.grading.intake.roster import Roster, Student, read_roster
from labsupport.grading.intake.spelling import loose_key, name_key, plain_key

EXERCISES = ["ex01_int8_symmetric", "ex02_kv_cache_size", "ex04_gptq", "ex10_later"]
EX01, EX02, EX04 = EXERCISES[:3]


def write(root: Path, *paths: str, data: bytes = b"{}") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def make_zip(path: Path, entries: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below ``folder`` but the manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "collected.csv"
    }


def left_out(collection: Collection, kind: str) -> dict[str, str]:
    """Source -> why, of the files that were left out as "unknown" or "refused"."""
    return {
        entry.source: entry.reason.partition(": ")[2]
        for entry in collection.left_out
        if entry.reason.startswith(f"{kind}: ")
    }


# What a name says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "exercise", "person"), [
    ("ex01_int8_symmetric_alice.ipynb", EX01, "alice"),
    ("alice_ex01_int8_symmetric.ipynb", EX01, "alice"),
    ("alice_EX01.ipynb", EX01, "alice"),
    ("alice_ex01 (1).ipynb", EX01, "alice"),
    ("alice_ex01-Copy2.ipynb", EX01, "alice"),
    ("Copy of ex04_gptq_alice.ipynb", EX04, "alice"),
    ("ex04-group-3.ipynb", EX04, "group-3"),
    ("alice/ex01_int8_symmetric.ipynb", EX01, "alice"),
    ("alice/ex01_int8_symmetric_final.ipynb", EX01, "alice"),
    ("alice/week1/ex02_kv_cache_size.ipynb", EX02, "alice"),
    ("alice/ex02/solution.ipynb", EX02, "alice"),
    ("Jane Doe_12345_assignsubmission_file_/ex01.ipynb", EX01, "Jane Doe"),
    ("Jane Doe_12345_assignsubmission_file/ex01_int8_symmetric.ipynb", EX01, "Jane Doe"),
    ("Jane Doe_12345_assignsubmission_file_ex01.ipynb", EX01, "Jane Doe"),
    ("doejane_1234_5678_ex01_int8_symmetric-2.ipynb", EX01, "doejane"),
    ("doejane_LATE_1234_5678_ex01_int8_symmetric.ipynb", EX01, "doejane"),
    ("anon_a1B2c_5678_ex04_gptq.ipynb", EX04, "anon_a1B2c"),
])  # fmt: skip
def test_a_path_says_whose_it_is(path, exercise, person):
    named = read_name(PurePosixPath(path), EXERCISES)
    assert (named.exercises, named.person) == ((exercise,), person)


@pytest.mark.parametrize(("path", "message"), [
    ("alice.ipynb", "no exercise"),
    ("ex01.ipynb", "no student"),
    ("alice_ex9.ipynb", "no exercise"),
    ("alice_ex101.ipynb", "no exercise"),
    ("alice_ex01_ex02.ipynb", "ex01_int8_symmetric or ex02_kv_cache_size"),
    ("alex01.ipynb", "no exercise"),  # part of a word
])  # fmt: skip
def test_a_path_that_says_too_little_is_said_so(tmp_path, path, message):
    write(tmp_path / "in", path)
    collection = collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert message in left_out(collection, "unknown")[path] and not collection.complete


@pytest.mark.parametrize(("path", "person"), [
    # whatever comes after what the LMS wrote was chosen by the student
    ("mallory_66_77_bob_1_2_ex01.ipynb", "mallory"),
    ("Mallory_66_assignsubmission_file_/Bob_1_assignsubmission_file_/ex01.ipynb", "Mallory"),
    ("Mallory_66_assignsubmission_file_Bob_1_assignsubmission_file_ex01.ipynb", "Mallory"),
    ("mallory/bob/ex01_int8_symmetric.ipynb", "mallory"),
    ("mallory/ex01_int8_symmetric_bob.ipynb", "mallory"),
    ("mallory/bob_1_2_ex01.ipynb", "mallory"),
    ("mallory/submitted/bob/week1/ex01.ipynb", "mallory"),
])  # fmt: skip
def test_nobody_hands_in_for_someone_else_by_a_name(path, person):
    assert read_name(PurePosixPath(path), EXERCISES).person == person


@pytest.mark.parametrize(("paths", "stamped", "expected"), [
    (["alice/ex01.ipynb", "bob/ex01.ipynb"], False, 0),
    (["class/alice/ex01.ipynb", "class/bob/ex01.ipynb"], False, 1),
    (["class/alice_ex01.ipynb", "class/bob_ex01.ipynb"], False, 1),
    (["alice/ex01.ipynb", "alice/ex02.ipynb"], False, 0),
    (["alice/ex01.ipynb"], False, 0),
    (["a/submitted/alice/week1/ex01.ipynb"], True, 2),
    (["alice/week1/ex01.ipynb"], True, 0),
    (["alice/week1/ex01.ipynb", "bob/week1/ex01.ipynb"], True, 0),
    (["Jane Doe_1_assignsubmission_file_/ex01.ipynb"], False, 0),
    (["x/doejane_1_2_ex01.ipynb", "x/roejim_3_4_ex01.ipynb"], False, 1),
    ([], False, 0),
])  # fmt: skip
def test_folders_around_the_students_are_known(paths, stamped, expected):
    assert wrapper([PurePosixPath(path) for path in paths], EXERCISES, stamped) == expected


@pytest.mark.parametrize(("name", "expected"), [
    ("Jane  Doe", "Jane  Doe"), ("../../etc", "%2E.%2F..%2Fetc"), ("a/b\\c", "a%2Fb%5Cc"), (".hidden", "%2Ehidden"),
    ("-rf", "%2Drf"), ("=cmd()", "%3Dcmd()"), ("CON", "%43ON"), ("李雷", "李雷"), ("jane@uni.edu", "jane@uni.edu"),
    ("..", "%2E%2E"), ("\0\n", "%00"), ("jos\u0065\u0301", "jos\u00e9"), ("राम", "राम"), ("50%", "50%25"),
    ("Weiß", "Wei%C3%9F"), (" ", ""),
])  # fmt: skip
def test_names_of_folders_are_harmless_and_can_be_undone(name, expected):
    assert folder_of(name) == expected
    assert not expected or name_of(expected) == unicodedata.normalize("NFC", name).strip()


def test_a_name_that_is_too_long_for_a_file_system_is_cut_and_kept_apart():
    one, other = folder_of("ก" * 300), folder_of("ก" * 301)
    assert one != other and len(one.encode()) <= 200 and name_of(one, {one: "whole"}) == "whole"


# Collecting ----------------------------------------------------------------------------------------------------------


def test_one_collection_from_every_layout(tmp_path):
    write(tmp_path / "flat", "ex01_int8_symmetric_alice.ipynb", "bob_ex01.ipynb", data=b"flat")
    write(tmp_path / "folders", "carol/ex01_int8_symmetric.ipynb", "dave/ex04_gptq.ipynb", "dave/notes.txt")
    write(tmp_path / "nbgrader", "submitted/erin/week1/ex02_kv_cache_size.ipynb",
          "submitted/frank/week1/ex02_kv_cache_size.ipynb")  # fmt: skip
    moodle = make_zip(tmp_path / "moodle.zip", {"Jane Doe_12345_assignsubmission_file_/ex01.ipynb": "moodle"})
    canvas = make_zip(tmp_path / "canvas.zip", {"roejim_LATE_12_345_ex01_int8_symmetric-2.ipynb": "canvas"})
    collection = collect(
        [tmp_path / "flat", tmp_path / "folders", tmp_path / "nbgrader", moodle, canvas], tmp_path / "out", EXERCISES
    )
    assert collection.complete, str(collection)
    assert tree(tmp_path / "out") == {
        "Jane Doe/ex01_int8_symmetric.ipynb": b"moodle",
        "alice/ex01_int8_symmetric.ipynb": b"flat",
        "bob/ex01_int8_symmetric.ipynb": b"flat",
        "carol/ex01_int8_symmetric.ipynb": b"{}",
        "dave/ex04_gptq.ipynb": b"{}",
        "erin/ex02_kv_cache_size.ipynb": b"{}",
        "frank/ex02_kv_cache_size.ipynb": b"{}",
        "roejim_12/ex01_int8_symmetric.ipynb": b"canvas",
    }
    assert [s.student for s in collection.kept if s.late] == ["roejim_12"]
    assert [e.source for e in collection.entries if e.decision == "ignored"] == ["dave/notes.txt"]


def test_collecting_again_changes_nothing_and_says_so(tmp_path):
    write(tmp_path / "in", "alice_ex01.ipynb", "bob_ex01.ipynb")
    collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    target = tmp_path / "out" / "alice" / "ex01_int8_symmetric.ipynb"
    before = target.stat().st_mtime_ns, target.stat().st_ino
    write(tmp_path / "in", "bob_ex01.ipynb", data=b"better")
    again = collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert (target.stat().st_mtime_ns, target.stat().st_ino) == before
    assert {e.student: e.decision for e in again.entries} == {"alice": "unchanged", "bob": "replaced"}
    assert (tmp_path / "out" / "bob" / "ex01_int8_symmetric.ipynb").read_bytes() == b"better"


def test_the_latest_of_several_is_kept_and_said(tmp_path):
    write(tmp_path, "in/alice_ex01.ipynb", data=b"new")
    write(tmp_path, "in/alice_ex01 (1).ipynb", data=b"old")
    past = datetime.now().timestamp() - 1000
    os.utime(tmp_path / "in" / "alice_ex01 (1).ipynb", (past, past))
    zipped = make_zip(tmp_path / "c.zip", {
        "roejim_12_345_ex01-2.ipynb": "second", "roejim_12_340_ex01.ipynb": "first",
        "roejim_12_350_ex01-1.ipynb": "third",
    })  # fmt: skip
    collection = collect([tmp_path / "in", zipped], tmp_path / "out", EXERCISES)
    found = tree(tmp_path / "out")
    assert found["alice/ex01_int8_symmetric.ipynb"] == b"new"
    assert found["roejim_12/ex01_int8_symmetric.ipynb"] == b"third"
    assert "alice_ex01 (1).ipynb" in str(collection) and "an older version: alice_ex01.ipynb" in str(collection)
    assert len([e for e in collection.left_out if "an older version" in e.reason]) == 3


def test_late_ones_are_kept_and_reported(tmp_path):
    write(tmp_path, "n/submitted/alice/w/ex01.ipynb", "n/submitted/bob/w/ex01.ipynb", "n/submitted/eve/w/ex01.ipynb")
    (tmp_path / "n/submitted/alice/w/timestamp.txt").write_text("2026-02-02 15:58:23.948203 UTC")
    (tmp_path / "n/submitted/bob/w/timestamp.txt").write_text("2026-02-02 17:30:00 Europe/Berlin\n")  # 16:30 UTC
    (tmp_path / "n/submitted/eve/w/timestamp.txt").write_text("yesterday")
    deadline = datetime(2026, 2, 2, 16, 0, tzinfo=UTC)
    old = (deadline - timedelta(days=1)).timestamp()
    os.utime(tmp_path / "n/submitted/eve/w/ex01.ipynb", (old, old))  # her timestamp says nothing: the file's counts
    collection = collect([tmp_path / "n"], tmp_path / "out", EXERCISES, deadline=deadline)
    assert [s.student for s in collection.kept] == ["alice", "bob", "eve"]
    assert [s.student for s in collection.kept if s.late] == ["bob"]
    assert "late       bob/ex01_int8_symmetric" in str(collection)
    with open(tmp_path / "out" / "collected.csv") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert rows["bob"]["late"] == "late" and rows["alice"]["late"] == ""
    assert rows["alice"]["handed_in"].startswith("2026-02-02T15:58:23")


def test_a_roster_finds_people_by_whatever_the_layout_says(tmp_path):
    roster = Roster([
        Student("s1", "Doe, Jane", "jane@uni.edu", "jdoe", canvas_id="1234"),
        Student("s2", "José Müller", login="jmueller"),
        Student("s3", "Ann Lee"), Student("s4", "Ann Lee"), Student("s5", "Nobody Here"),
    ])  # fmt: skip
    write(tmp_path / "in", "jdoe_ex01.ipynb", "ex02_Müller José.ipynb", "ann_lee_ex01.ipynb", "mallory_ex01.ipynb",
          "jdoe-2_ex04.ipynb")  # fmt: skip
    moodle = make_zip(tmp_path / "m.zip", {"Jane Doe_9_assignsubmission_file_/ex02.ipynb": "m"})
    canvas = make_zip(tmp_path / "c.zip", {"somethingelse_1234_1_ex10.ipynb": "c"})
    collection = collect([tmp_path / "in", moodle, canvas], tmp_path / "out", EXERCISES, roster)
    assert sorted(tree(tmp_path / "out")) == [
        "s1/ex01_int8_symmetric.ipynb", "s1/ex02_kv_cache_size.ipynb", "s1/ex04_gptq.ipynb", "s1/ex10_later.ipynb",
        "s2/ex02_kv_cache_size.ipynb",
    ]  # fmt: skip
    assert left_out(collection, "unknown") == {
        "ann_lee_ex01.ipynb": "'ann_lee' may be s3 or s4",
        "mallory_ex01.ipynb": "'mallory' is not on the roster",
    }
    assert collection.missing == ["s3", "s4", "s5"] and not collection.complete


def test_namesakes_in_moodle_are_never_merged(tmp_path):
    entries = {f"Ann Lee_{n}_assignsubmission_file_/ex01.ipynb": str(n) for n in (7, 8)}
    zipped = make_zip(tmp_path / "m.zip", entries)
    collect([zipped], tmp_path / "out", EXERCISES)
    assert tree(tmp_path / "out") == {
        "Ann Lee_7/ex01_int8_symmetric.ipynb": b"7", "Ann Lee_8/ex01_int8_symmetric.ipynb": b"8"
    }  # fmt: skip
    listed = collect([zipped], tmp_path / "out2", EXERCISES, Roster([Student("s3", "Ann Lee")]))
    assert listed.kept == [] and len(left_out(listed, "unknown")) == 2


def test_an_lms_assignment_whose_files_have_any_name(tmp_path):
    zipped = make_zip(tmp_path / "c.zip", {"doejane_1_2_homework.ipynb": "a", "roejim_3_4_ex02.ipynb": "b"})
    collection = collect([zipped], tmp_path / "out", EXERCISES, exercise=EX01)
    assert tree(tmp_path / "out") == {
        "doejane_1/ex01_int8_symmetric.ipynb": b"a", "roejim_3/ex01_int8_symmetric.ipynb": b"b"
    }  # fmt: skip
    assert collection.complete


def test_two_spellings_of_a_name_are_one_folder(tmp_path):
    write(tmp_path / "in", "Alice_ex01.ipynb", "alice_ex02.ipynb")
    collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 1


# Hostile sources -----------------------------------------------------------------------------------------------------


def test_paths_that_leave_a_zip_are_refused_and_nothing_is_written_outside(tmp_path):
    zipped = make_zip(tmp_path / "evil.zip", {
        "../alice_ex01.ipynb": "x", "/tmp/bob_ex01.ipynb": "x", "a/../../../carol_ex01.ipynb": "x",
        "..\\..\\dave_ex01.ipynb": "x", "C:/erin_ex01.ipynb": "x", "fine_ex01.ipynb": "ok",
    })  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    collection = collect([zipped], tmp_path / "out", EXERCISES)
    assert tree(tmp_path / "out") == {"fine/ex01_int8_symmetric.ipynb": b"ok"}
    refused = left_out(collection, "refused")
    assert len(refused) == 5 and all("leaves the archive" in why for why in refused.values())
    outside = [path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)]
    assert sorted(outside) == before


def test_links_pipes_and_devices_are_refused(tmp_path):
    source = tmp_path / "in"
    write(tmp_path, "secret.ipynb", "in/fine_ex01.ipynb", data=b"secret")
    (source / "alice_ex01.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (source / "bob").symlink_to(tmp_path)
    os.mkfifo(source / "carol_ex01.ipynb")
    collection = collect([source], tmp_path / "out", EXERCISES)
    assert list(tree(tmp_path / "out")) == ["fine/ex01_int8_symmetric.ipynb"]
    assert left_out(collection, "refused") == {
        "alice_ex01.ipynb": "is a symbolic link", "bob": "is a symbolic link",
        "carol_ex01.ipynb": "is not a regular file",
    }  # fmt: skip


def test_a_link_put_in_place_after_the_walk_is_not_followed(tmp_path):
    write(tmp_path, "in/alice_ex01.ipynb", "secret")
    (file,) = incoming.find(tmp_path / "in").files
    (tmp_path / "in" / "alice_ex01.ipynb").unlink()
    (tmp_path / "in" / "alice_ex01.ipynb").symlink_to(tmp_path / "secret")
    with pytest.raises(found.Refused):
        file.read()


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("alice_ex01.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    collection = collect([tmp_path / "l.zip"], tmp_path / "out", EXERCISES)
    assert collection.kept == [] and list(left_out(collection, "refused").values()) == ["is a symbolic link"]


def test_zip_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch):
    monkeypatch.setattr(found, "MAX_FILE", 3 * 2**20)
    bomb = make_zip(tmp_path / "b.zip", {"alice_ex01.ipynb": b"\0" * 2 * 2**20, "bob_ex01.ipynb": b"\0" * 4 * 2**20})
    collection = collect([bomb], tmp_path / "out", EXERCISES)
    assert collection.kept == []
    assert list(left_out(collection, "refused").values()) == [
        "would unpack to more than 200 times its size",
        "is larger than 3 MB",
    ]


def test_a_zip_that_lies_about_sizes_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(found, "MAX_FILE", 1000)
    path = make_zip(tmp_path / "lie.zip", {"alice_ex01.ipynb": os.urandom(5000)}, zipfile.ZIP_STORED)
    real = zipfile.ZipFile.infolist

    def lie(self):
        for entry in real(self):
            entry.file_size = 10
        return real(self)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", lie)
    collection = collect([path], tmp_path / "out", EXERCISES)
    assert collection.kept == [] or len(tree(tmp_path / "out")["alice/ex01_int8_symmetric.ipynb"]) <= 1000


def test_all_entries_of_a_zip_together_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL", 2500)
    path = make_zip(tmp_path / "t.zip", {f"s{i}_ex01.ipynb": os.urandom(1000) for i in range(5)})
    collection = collect([path], tmp_path / "out", EXERCISES)
    assert len(collection.kept) == 2 and len(collection.left_out) == 3


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\0" * 100, b"PK\x05\x06" + b"\xff" * 18])
def test_a_broken_zip_is_refused(tmp_path, data):
    (tmp_path / "x.zip").write_bytes(data)
    collection = collect([tmp_path / "x.zip"], tmp_path / "out", EXERCISES)
    assert collection.kept == [] and "not a readable zip" in collection.left_out[0].reason


def test_a_damaged_entry_does_not_stop_the_others(tmp_path):
    path = make_zip(
        tmp_path / "d.zip", {"alice_ex01.ipynb": b"A" * 400, "bob_ex01.ipynb": b"B" * 400}, zipfile.ZIP_STORED
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"A" * 400) + 7] = 0  # the checksum tells
    path.write_bytes(data)
    collection = collect([path], tmp_path / "out", EXERCISES)
    assert list(tree(tmp_path / "out")) == ["bob/ex01_int8_symmetric.ipynb"]
    assert "cannot be unpacked" in collection.left_out[0].reason


def test_a_zip_among_the_submissions_is_of_the_student_who_handed_it_in(tmp_path):
    make_zip(tmp_path / "mallory_ex01.zip", {"bob/ex01_int8_symmetric.ipynb": "not bob's"})
    (tmp_path / "in").mkdir()
    (tmp_path / "mallory_ex01.zip").rename(tmp_path / "in" / "mallory_ex01.zip")
    collection = collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert tree(tmp_path / "out") == {"mallory/ex01_int8_symmetric.ipynb": b"not bob's"} and collection.complete


@pytest.mark.parametrize("entries", [
    ("alice/ex01.ipynb", "bob/ex01.ipynb"), ("alice_ex01.ipynb", "bob_ex01.ipynb"),
    ("Jane Doe_1_assignsubmission_file_/ex01.ipynb",), ("doejane_1_2_ex01.ipynb",),
])  # fmt: skip
def test_the_zip_of_a_whole_class_among_the_submissions_is_nobodys(tmp_path, entries):
    (tmp_path / "in").mkdir()
    make_zip(tmp_path / "in" / "submissions.zip", dict.fromkeys(entries, "{}"))
    collection = collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert collection.kept == [] and not collection.complete
    assert len(collection.entries) == len(entries) and "a SOURCE of its own" in str(collection)


def test_too_large_and_too_deep(tmp_path, monkeypatch):
    monkeypatch.setattr(found, "MAX_FILE", 100)
    write(tmp_path / "in", "alice_ex01.ipynb", data=b"x" * 101)
    write(tmp_path / "in", "/".join("d" * 14) + "/ex01.ipynb")
    collection = collect([tmp_path / "in"], tmp_path / "out", EXERCISES)
    assert collection.kept == [] and len(collection.left_out) == 2


def test_out_and_source_must_lie_apart(tmp_path):
    write(tmp_path, "in/alice_ex01.ipynb")
    for out in (tmp_path / "in", tmp_path / "in" / "out", tmp_path):
        with pytest.raises(ValueError, match="must lie outside"):
            collect([tmp_path / "in"], out, EXERCISES)
    with pytest.raises(ValueError, match="must be a folder, a zip or a tar"):
        collect([tmp_path / "nothing"], tmp_path / "out", EXERCISES)


def test_a_file_name_with_terminal_codes_is_shown_without_them(tmp_path):
    write(tmp_path / "in", "\x1b[31mred.ipynb")
    assert "\x1b" not in str(collect([tmp_path / "in"], tmp_path / "out", EXERCISES))


# Rosters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("student,name\nalice,Alice A\n", Student("alice", "Alice A")),
    ("\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Exercise 1 (77)\n    Points Possible,,,,,10\n"
     '"Doe, Jane",1234,99,jdoe,A,\n"Student, Test",5,,x,A,\n',
     Student("jdoe", "Doe, Jane", login="jdoe", sis_id="99", canvas_id="1234", section="A")),
    ("First name,Last name,ID number,Email address\nJane,Doe,99,jane@uni.edu\n",
     Student("99", "Jane Doe", "jane@uni.edu", sis_id="99")),
    ("First name;Surname;Email address\nJane;Doe;jane@uni.edu\n", Student("jane", "Jane Doe", "jane@uni.edu")),
])  # fmt: skip
def test_rosters_of_canvas_moodle_and_ones_own(tmp_path, text, expected):
    (tmp_path / "r.csv").write_text(text, encoding="utf-8")
    assert read_roster(tmp_path / "r.csv").students == [expected]


@pytest.mark.parametrize(("data", "message"), [
    (b"", "is empty"), (b"who\nalice\n", "needs a column student"), (b"student\nal\nAL\n", "several of AL, al"),
    (b"student\n\xff\n", "must be UTF-8"),
])  # fmt: skip
def test_a_roster_that_tells_nobody_apart_is_an_error(tmp_path, data, message):
    (tmp_path / "r.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_roster(tmp_path / "r.csv")


def test_only_latin_greek_and_cyrillic_letters_are_compared_without_their_accents():
    assert plain_key("Müller, José") == "mullerjose" and plain_key("李雷") == "李雷" and plain_key("a_b.c") == "abc"
    for one, other in (("राम", "रिम"), ("กา", "กี"), ("כָּל", "כֹּל"), ("가", "각")):
        assert len({plain_key(one), plain_key(other)}) == len({name_key(one), name_key(other)}) == 2
    assert name_key("JOSÉ  x") == name_key("jose\u0301 X") and loose_key("Doe, Jane") == loose_key("doejane")
    assert name_key("Weiß") != name_key("Weiss") and name_key("ΝΊΚΟΣ") == name_key("νίκος")
