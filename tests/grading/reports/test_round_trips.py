"""What Canvas and Moodle make of the files: the same grades for the same people, and nobody else touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from grading.reports.importers import Aborted, Canvas, Moodle, User
from typer.testing import CliRunner

from labsupport.cli import app
from labsupport.grading.intake.roster import Roster, Student, read_roster
from labsupport.grading.reports.canvas import UnclearColumn, write_canvas
from labsupport.grading.reports.moodle import write_moodle
from labsupport.grading.reports.results import Results, Row
from labsupport.grading.reports.write import write_reports

EX01, EX02 = "ex01_int8_symmetric", "ex02_kv_cache_size"
CLASS = [
    User("11", "Doe, Jane", "s1", "jane", "jane@uni.edu"), User("12", "राम", "s2", "ram", "ram@uni.edu"),
    User("13", "रिम", "s3", "rim", "rim@uni.edu"), User("14", "Lee, Ann", "s4", "ann", "ann@uni.edu"),
    User("15", "Lee, Ann", "s5", "ann2", "ann2@uni.edu"), User("16", "Roe, Jim", "s6", "jim", "jim@uni.edu"),
]  # fmt: skip
EXPORT = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Homework ex01 (71),Other ex02 (72),Free (73),Final Score\n"
    ",,,,,Manual Posting,,,\n"
    "    Points Possible,,,,,10,20,5,(read only)\n"
    '"Doe, Jane",11,s1,jane,A,,4,1,5\nराम,12,s2,ram,A,EX,,2,5\nरिम,13,s3,rim,A,7.5,-,3,5\n'
    '"Lee, Ann",14,s4,ann,A,,,4,5\n"Lee, Ann",15,s5,ann2,A,,EX,5,5\n"Roe, Jim",16,s6,jim,A,3,2,6,5\n'
    '"Student, Test",99,,9a1bf3f6e2c14b8cae5f9d2f5f7c0b7a1e4d9f00,A,1,1,1,1\n'
)
MESSAGE = 'your code raised "<b>x</b>" & <script>alert(1)</script>'


def row(student: str, exercise: str = EX01, score: float = 8.0, **changes) -> Row:
    return replace(Row(student, exercise, score, 10, "failed", MESSAGE), **changes)


@pytest.fixture
def canvas() -> Canvas:
    cells = {"11": ",4,1", "12": "EX,,2", "13": "7.5,-,3", "14": ",,4", "15": ",EX,5", "16": "3,2,6", "99": "1,1,1"}
    grades = {
        (who, a): g for who, line in cells.items() for a, g in zip(["71", "72", "73"], line.split(","), strict=True)
    }
    titles = {"71": "Homework ex01", "72": "Other ex02", "73": "Free"}
    return Canvas([*CLASS, User("99", "Student, Test")], titles, {"71": "10", "72": "20", "73": "5"}, grades)


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    (tmp_path / "export.csv").write_text(EXPORT, encoding="utf-8")
    return read_roster(tmp_path / "export.csv")


def test_canvas_changes_the_new_scores_and_nothing_else(tmp_path, canvas, roster):
    rows = [row("jane"), row("रिम", score=9), row("rim", score=9.25), row("ann2", EX02, 6), row("guest"),
            row("ram"), row("jim", status="error", score=0)]  # fmt: skip
    before, points = dict(canvas.grades), dict(canvas.points)
    notes = write_canvas(tmp_path / "canvas.csv", rows, roster)
    canvas.upload(tmp_path / "canvas.csv")
    changed = {key: grade for key, grade in canvas.grades.items() if grade != before.get(key, "") and grade != ""}
    assert changed == {("11", "71"): "8", ("13", "71"): "9.25"}
    assert {key for key in before if canvas.grades[key] == "" and before[key] not in ("", "-")} == set()
    assert canvas.points == points, "the assignments stay as they are"
    told = "\n".join(notes)
    for phrase in ("guest is not on the roster", "रिम is not on the roster", "ram is excused from ex01_int8_symmetric",
                   "ann2 is excused from ex02", "jim: ex01_int8_symmetric could not be graded",
                   "Other ex02 (72) has 20 points"):  # fmt: skip
        assert phrase in told, phrase


@pytest.mark.parametrize(("header", "said", "column"), [
    ("Homework ex01 (71),Late ex01 (74)", None, None),
    ("Homework 1 (71),Other (72)", None, None),
    ("Homework 1 (71),Homework 1 (72)", "Homework 1", None),
    ("Homework 1 (71),Other (72)", "Homework", None),
    ("ex01_int8_symmetric (71),ex01 bonus (72)", None, "ex01_int8_symmetric (71)"),
    ("Homework ex01 (71),ex010 (72)", None, "Homework ex01 (71)"),
    ("Homework 1 (71),Other (72)", "Homework 1", "Homework 1 (71)"),
    ("Homework 1 (71),Other (72)", "Other (72)", "Other (72)"),
    ("Homework 1 (71),Other (72)", "72", "Other (72)"),
    ("ex01 Final Score,Homework 1 (72)", None, None),
    ("ex01 notes,Homework ex01 (71)", None, "Homework ex01 (71)"),
])  # fmt: skip
def test_the_column_of_an_exercise_is_clear_or_asked_for(tmp_path, header, said, column):
    (tmp_path / "e.csv").write_text(f"Student,ID,SIS User ID,SIS Login ID,Section,{header}\na,1,s,a,A,,\n")
    roster, chosen = read_roster(tmp_path / "e.csv"), {EX01: said} if said else {}
    if column is None:
        with pytest.raises(UnclearColumn, match="--column"):
            write_canvas(tmp_path / "canvas.csv", [row("a")], roster, chosen)
        assert not (tmp_path / "canvas.csv").exists()
    else:
        write_canvas(tmp_path / "canvas.csv", [row("a")], roster, chosen)
        assert (tmp_path / "canvas.csv").read_text().splitlines()[0].endswith(column)


def test_export_refuses_an_unclear_column_lists_the_candidates_and_remembers_the_choice(tmp_path):
    grades = tmp_path / "grades"
    Results(grades).save(row("jane"))
    write_reports(grades, [row("jane")])
    (tmp_path / "e.csv").write_text("Student,ID,SIS User ID,SIS Login ID,Section,A (1),B (2)\nDoe,11,,jane,S,,\n")
    run = lambda *more: CliRunner().invoke(app, ["export", str(grades), "--roster", str(tmp_path / "e.csv"), *more])  # noqa: E731
    refused = run()
    assert refused.exit_code == 2 and "A (1); B (2)" in refused.output and not (grades / "canvas.csv").exists()
    assert run("--column", "ex01=B (2)").exit_code == 0
    assert run().exit_code == 0, "it is remembered"
    assert (grades / "canvas.csv").read_text().splitlines()[0].endswith("Section,B (2)")
    assert run("--column", "ex01=").exit_code == 0 and "B (2)" not in (grades / "canvas.csv").read_text()
    assert "must be like" in run("--column", "what").output


@pytest.fixture
def moodle() -> Moodle:
    grades = {("14", EX01): "3", ("11", EX02): "4", ("16", EX01): "5"}
    return Moodle(CLASS, grades, {})


def people(**changes) -> Roster:
    students = [Student(u.login, u.name, u.email, u.login, u.sis) for u in CLASS]
    return Roster([replace(s, **{k: v(s) for k, v in changes.items()}) for s in students])


@pytest.mark.parametrize("old_version", [False, True])
@pytest.mark.parametrize("mapfrom", ["Username", "ID number", "Email address"])
def test_moodle_gives_every_grade_to_its_person_and_touches_nobody_else(tmp_path, moodle, mapfrom, old_version):
    notes = write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim", score=2.5), row("guest")], people())
    before = dict(moodle.grades)
    moodle.upload(tmp_path / "moodle.csv", mapfrom, old_version)
    changed = {key: grade for key, grade in moodle.grades.items() if grade != before.get(key)}
    assert changed == {("11", EX01): "8", ("13", EX01): "2.5"}
    assert "<" not in moodle.feedback["11", EX01] and "raised" in moodle.feedback["11", EX01]
    assert notes == ["moodle.csv: guest is not on the roster"]


def test_moodle_gets_no_column_in_which_somebody_has_nothing(tmp_path, moodle):
    roster = people(login=lambda s: "" if s.id == "rim" else s.login, sis_id=lambda s: "same")
    write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim")], roster)
    assert (tmp_path / "moodle.csv").read_text().splitlines()[0].startswith(f"Full name,Email address,{EX01}")
    moodle.upload(tmp_path / "moodle.csv", "Email address", old_version=True)
    assert moodle.grades["13", EX01] == "8"


def test_people_whom_moodle_cannot_find_are_left_out_and_named(tmp_path, moodle):
    roster = people(login=lambda s: "" if s.id == "rim" else s.login, sis_id=lambda s: "", email=lambda s: "")
    notes = write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim")], roster)
    assert notes == ["moodle.csv: rim has no e-mail address, user name or ID number of their own on the roster"]
    moodle.upload(tmp_path / "moodle.csv", "Username", old_version=True)
    assert ("13", EX01) not in moodle.grades and moodle.grades["11", EX01] == "8"


def test_what_a_spreadsheet_would_run_identifies_nobody(tmp_path, moodle):
    roster = people(login=lambda s: "-rim" if s.id == "rim" else s.login, sis_id=lambda s: f"+{s.id}")
    write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim")], roster)
    assert (tmp_path / "moodle.csv").read_text().splitlines()[0].startswith(f"Full name,Email address,{EX01}")


def test_where_grades_are_missing_moodle_gets_a_file_for_each_exercise(tmp_path, moodle):
    notes = write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim", EX02), row("rim")], people())
    assert "import the files in moodle/" in notes[0]
    for path in sorted((tmp_path / "moodle").iterdir()):
        moodle.upload(path, "Email address")
    assert moodle.grades == {("14", EX01): "3", ("11", EX02): "4", ("16", EX01): "5", ("11", EX01): "8",
                             ("13", EX01): "8", ("13", EX02): "8"}  # fmt: skip
    write_moodle(tmp_path / "moodle.csv", [row("jane")], people())
    assert not list((tmp_path / "moodle").iterdir()), "files of an earlier export do not stay"


def test_what_was_collected_without_a_roster_still_finds_its_people(tmp_path, canvas, moodle, roster):
    rows = [row("doejane_11"), row("leeann_15", score=7), row("leeann_12"), row("team_16"), row("रिम"), row("Lee, Ann")]
    before = dict(canvas.grades)
    notes = write_canvas(tmp_path / "canvas.csv", [*rows, row("रीम")], roster)
    canvas.upload(tmp_path / "canvas.csv")
    changed = {key: grade for key, grade in canvas.grades.items() if grade != before.get(key, "")}
    assert changed == {("11", "71"): "8", ("15", "71"): "7", ("13", "71"): "8"}
    left = {note.split(" ")[1] for note in notes if note.endswith("is not on the roster")}
    assert left == {"leeann_12", "team_16", "Lee,", "रीम"}
    write_moodle(tmp_path / "moodle.csv", [row("Doe, Jane"), row("Jim Roe"), row("jim", score=3)], people())
    moodle.upload(tmp_path / "moodle.csv", "Email address")
    assert moodle.grades["11", EX01] == "8" and moodle.grades["16", EX01] == "3", "the id comes before the name"


def test_grades_that_are_in_moodles_export_stay(tmp_path, moodle):
    (tmp_path / "g.csv").write_text(
        "First name;Last name;Email address;Assignment: ex01 (Real);Assignment: ex02 (Real)\n"
        'Jane;Doe;jane@uni.edu;-;"4,5"\nrim;r;rim@uni.edu;-;-\n'
    )
    write_moodle(tmp_path / "moodle.csv", [row("jane"), row("rim", EX02), row("rim")], read_roster(tmp_path / "g.csv"))
    moodle.upload(tmp_path / "moodle.csv", "Email address")
    assert moodle.grades["11", EX02] == "4.5" and moodle.grades["11", EX01] == "8"


def test_the_importers_themselves_refuse_what_the_sources_refuse(tmp_path, canvas, moodle):
    """Else the tests above would prove nothing: the files as they were written before."""
    head = "Student,ID,SIS User ID,SIS Login ID,Section"
    for text in (
        f"{head},{EX01}\nDoe,11,,,A,1\n",
        f"{head},Homework ex01 (71)\nguest,,,guest,,1\n",
        "Name,ID\nDoe,11\n",
    ):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(Aborted):
            canvas.upload(tmp_path / "c.csv")
    (tmp_path / "m.csv").write_text(f"Full name,Email address,{EX01}\nJane,jane@uni.edu,8\nguest,,1\n")
    with pytest.raises(Aborted):
        moodle.upload(tmp_path / "m.csv", "Email address")
    moodle.upload(tmp_path / "m.csv", "Email address", old_version=True)
    assert moodle.grades["11", EX01] == "1", "the grade of the guest, at the person above"
