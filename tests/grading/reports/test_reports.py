"""Reports: right numbers, everything escaped, nothing that a student must not see, and scores set by hand."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from labsupport.checks import exercise
from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.reports import render as rendering
from labsupport.grading.reports.class_report import class_page, common_mistakes
from labsupport.grading.reports.csv_safe import guard, points, printable, unguard
from labsupport.grading.reports.feedback import MEANING, feedback_page
from labsupport.grading.reports.overrides import Override, add_override, apply_overrides, read_overrides
from labsupport.grading.reports.results import STATUSES, CheckResult, Row
from labsupport.grading.reports.write import HEADER, read_keys, write_reports

EX01, EX02 = "ex01_int8_symmetric", "ex02_kv_cache_size"
EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=1>{{7*7}}{% raw %}{# #}"
FINGERPRINT = "c0ffee123456"


def row(student: str, name: str = EX01, wrong: tuple[str, ...] = (), why: str = "off by 3", **changes) -> Row:
    checks = tuple(
        CheckResult(c.name, 0 if c.name in wrong else c.points, c.points, c.name not in wrong,
                    f"✗ {c.name} (0 of {c.points} points): {why}" if c.name in wrong else f"✓ {c.name}: {c.holds}")
        for c in exercise(name).checks
    )  # fmt: skip
    made = Row(student, name, sum(c.points for c in checks), sum(c.max_points for c in checks),
               "failed" if wrong else "ok", checks[0].message, checks, seed_fingerprint=FINGERPRINT, seconds=1.5,
               isolation="namespaces", answers={"answer-quantize": "def quantize_int8(x): ..."})  # fmt: skip
    return replace(made, **changes)


def read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order; collects tags, attributes and text."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def assert_harmless(text: str) -> Page:
    found = Page(text)
    assert {tag for tag, _ in found.tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "table", "thead", "tbody", "tr",
        "th", "td", "span", "b", "section", "details", "summary", "pre", "ul", "li", "div",
    }  # fmt: skip
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert attributes <= {"charset", "http-equiv", "content", "name", "lang", "class", "scope", "style"}
    assert "url(" not in text and "@import" not in text and "//" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)
    return found


# CSV -----------------------------------------------------------------------------------------------------------------


def test_grades_csv_has_the_header_and_a_row_each(tmp_path):
    write_reports(tmp_path, [row("alice"), row("bob", wrong=("check_scale",)), row("alice", EX02)])
    lines = read(tmp_path / "grades.csv")
    assert lines[0] == ["student", "exercise", "score", "max_score", "status", "message"] == HEADER
    assert [line[:5] for line in lines[1:]] == [
        ["alice", EX01, "10", "10", "ok"], ["alice", EX02, "10", "10", "ok"], ["bob", EX01, "8", "10", "failed"]
    ]  # fmt: skip
    assert read_keys(tmp_path) == {("alice", EX01), ("alice", EX02), ("bob", EX01)}


@pytest.mark.parametrize(
    "start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "=cmd|' /C calc'!A0"]
)
def test_no_cell_is_a_formula(tmp_path, start):
    rows = [row(start + "x", message=start), row("zoe", message="plain")]
    (tmp_path / "overrides.csv").write_text(f"student,exercise,score,reason\nzoe,{EX01},3,{start.strip()}\n")
    write_reports(
        tmp_path, rows, Roster([Student("zoe", name=start, email=start, login=start, sis_id="s1", section=start)])
    )
    for name in ("grades.csv", "canvas.csv", "moodle.csv"):
        cells = [cell for line in read(tmp_path / name)[1:] for cell in line]
        assert cells and not any(cell.lstrip().startswith(("=", "+", "-", "@", "＝")) for cell in cells), name
        assert any(cell.startswith("'") for cell in cells)


@given(st.text())
def test_a_guarded_cell_is_one_line_and_comes_back(text):
    cell = guard(text)
    assert isinstance(cell, str) and len(cell.splitlines()) <= 1
    assert not cell.startswith(("=", "+", "-", "@"))
    assert unguard(cell) == printable(text, " ").strip() or text.strip().startswith("'")


def test_letters_are_joined_in_reports_as_in_names_and_nothing_else_is_hidden():
    joined = "क्\u200dष می\u200cروم"
    assert guard(joined) == joined
    assert guard("a\u202eb\x1b[2J") == "a b [2J"


def test_numbers_stay_numbers():
    assert guard(-3) == -3 and points(7.0) == 7 and points(2 / 3) == 0.67 and str(points(10.0)) == "10"


# Feedback ------------------------------------------------------------------------------------------------------------


def test_feedback_says_what_was_asked_what_failed_and_why():
    found = assert_harmless(feedback_page("alice", [row("alice", wrong=("check_axis",), why="axis=0 needs 4 scales")]))
    assert "8 of 10 points in 1 exercise." in found.text
    assert "axis=0 needs 4 scales" in found.text and "0 of 2 points): axis" not in found.text
    for check in exercise(EX01).checks:
        assert check.name in found.text and check.holds in found.text


def test_feedback_shows_nothing_that_is_not_for_the_student(tmp_path):
    rows = [row("alice", wrong=("check_axis",)), row("bob", answers={"a": "bobs_secret = 1"})]
    write_reports(tmp_path, rows)
    text = (tmp_path / "feedback" / "alice.html").read_text()
    assert FINGERPRINT not in text and "bob" not in text and "namespaces" not in text
    assert sorted(path.name for path in (tmp_path / "feedback").iterdir()) == ["alice.html", "bob.html"]


@pytest.mark.parametrize("where", ["student", "exercise", "message", "notes", "answers", "checks", "override"])
def test_every_text_is_escaped(tmp_path, where):
    bad = row("alice", wrong=("check_scale",), why=EVIL if where == "checks" else "no")
    changes = {"student": {"student": EVIL}, "exercise": {"exercise": EVIL}, "message": {"message": EVIL, "checks": ()},
               "notes": {"notes": (EVIL,)}, "answers": {"answers": {EVIL: EVIL}}}.get(where, {})  # fmt: skip
    bad = replace(bad, **changes)
    if where == "override":
        add_override(tmp_path / "overrides.csv", Override("alice", EX01, 1.0, EVIL))
    write_reports(tmp_path, [bad, row("bob", wrong=("check_scale",), why=EVIL)])
    pages = [*(tmp_path / "feedback").iterdir(), tmp_path / "class_report.html"]
    assert len(pages) == 3
    for path in pages:
        assert path.parent in (tmp_path, tmp_path / "feedback")
        assert_harmless(path.read_text())
    assert any(EVIL in Page(path.read_text()).text for path in pages)


def everywhere(text: str) -> list[Row]:
    """Rows of one student with ``text`` in every place where a submission, its author or its checks can put one."""
    first = row(text, exercise=text, message=text, checks=(), notes=(text, "a"), isolation=text, answers={text: text})
    second = row(text, wrong=("check_scale",), why=text, message=text, notes=(text,), answers={"cell": text})
    strange = CheckResult(text, 0, 1, False, text)
    return [first, second, replace(second, exercise=EX02, checks=(*second.checks, strange), status="timeout")]


def skeleton(page: Page) -> list[tuple[str, str]]:
    """The elements, and of their attributes those that come from a template's values."""
    return [(tag, attributes.get("class", "")) for tag, attributes in page.tags]


@pytest.mark.parametrize("text", [
    EVIL, "{{7*7}}", "{{ self.__init__.__globals__ }}", "{% for x in ().__class__.__mro__ %}x{% endfor %}",
    "<script>alert(1)</script>", "' onmouseover='alert(1)", '" style="position:fixed', "</pre></td></table><h1>10",
    "<!-- ", "]]>", "&lt;b&gt;", "&#60;b&#62;", "</style><style>*{display:none}", "=1+1",
])  # fmt: skip
def test_hostile_text_stays_text_on_every_page(text):
    """The same elements as with a harmless word, and the text itself to be read where the word would be."""
    harmless, hostile = everywhere("word"), everywhere(text)
    for page, rows, name in ((feedback_page("word", harmless), hostile, text), (class_page(harmless), hostile, None)):
        found = assert_harmless(feedback_page(name, rows) if name is not None else class_page(rows))
        assert skeleton(found) == skeleton(Page(page))
        assert found.text.count(text) >= Page(page).text.count("word") > 5
        assert "49" not in found.text


@given(st.text())
@settings(max_examples=50)
def test_no_text_becomes_markup(text):
    expected = skeleton(Page(feedback_page("word", everywhere("word"))))
    assert skeleton(Page(feedback_page(text, everywhere(text)))) == expected
    assert skeleton(Page(class_page(everywhere(text)))) == skeleton(Page(class_page(everywhere("word"))))


def test_control_characters_and_lone_surrogates_are_shown_as_replaced():
    page = feedback_page("a\x1b[2J\ud800b\x00", [row("a", answers={"cell": "x = 1\n\ty = 2\x07"})])
    assert "a\ufffd[2J\ufffdb\ufffd" in page and "x = 1\n\ty = 2\ufffd" in page
    page.encode()  # a lone surrogate would raise


def test_a_template_marks_nothing_as_safe_and_lacks_nothing():
    for path in Path(rendering.__file__).parent.glob("templates/*"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*(safe|tojson)|autoescape|Markup", text), path.name
    with pytest.raises(UndefinedError, match="'submissions' is undefined"):
        rendering.render("class_report.html.j2", title="Class report")


def test_a_strange_name_of_a_student_stays_in_the_folder(tmp_path):
    write_reports(tmp_path, [row("../../alice"), row("a/b"), row("..")])
    assert len(list((tmp_path / "feedback").iterdir())) == 3
    assert not any(path.suffix == ".html" for path in tmp_path.parent.iterdir())


def test_every_status_is_explained():
    assert MEANING.keys() == set(STATUSES)


# The class -----------------------------------------------------------------------------------------------------------


def test_mistakes_that_differ_in_numbers_count_as_one():
    why = "the scale is {0}.5 times too large (line {0} of its cell: x = {0})"
    rows = [row(f"s{i}", wrong=("check_scale",), why=why.format(i)) for i in range(3)]
    rows.append(row("z", wrong=("check_scale", "check_axis"), why="something else"))
    first, *others = common_mistakes(rows)
    assert first == (
        EX01,
        "check_scale",
        "the scale is 0.5 times too large (line 0 of its cell: x = 0)",
        ["s0", "s1", "s2"],
    )
    assert [(check, who) for _, check, _, who in others] == [("check_axis", ["z"]), ("check_scale", ["z"])]


def test_the_class_report_counts_right():
    rows = [row(f"s{i}") for i in range(3)] + [row("t", wrong=("check_scale", "check_codes"))]
    rows += [row("u", status="timeout", message="your code took too long", wrong=("check_axis",))]
    found = assert_harmless(class_page(rows))
    for text in ("5 submissions of 5 students", "8.8 of 10", "60%", "3 ok, 1 failed, 1 timeout", "4 of 5 pass",
                 "Isolation: 5 namespaces", "your code took too long", "A hint to look, not a proof"):  # fmt: skip
        assert text in found.text, text


def test_answers_that_look_alike_are_shown_unless_the_stub_says_them():
    source = "\n".join(f"v{i} = torch.op{i}(v{i - 1}, axis={i}) + {i}" for i in range(1, 12))
    rows = [row(name, answers={"a": text}) for name, text in
            (("alice", source), ("bob", source.replace("v", "w")), ("carol", "x = 1"))]  # fmt: skip
    assert "alice, bob" in Page(class_page(rows)).text
    assert "alice, bob" not in Page(class_page(rows, {EX01: source})).text


def test_an_empty_class_has_a_report(tmp_path):
    write_reports(tmp_path, [])
    assert_harmless((tmp_path / "class_report.html").read_text())
    assert read(tmp_path / "grades.csv") == [HEADER]


# The LMS -------------------------------------------------------------------------------------------------------------

CANVAS_EXPORT = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Exercise 1 - ex01 (77),Other (78)\n"
    "    Points Possible,,,,,10,5\n"
    '"Doe, Jane",1234,0099,alice,A,,\n'
    '"Roe, Jim",1235,0100,jim,B,,\n'
)


def test_canvas_gets_its_own_columns_back(tmp_path):
    (tmp_path / "roster.csv").write_text(CANVAS_EXPORT)
    notes = write_reports(tmp_path, [row("alice"), row("guest")])
    assert read(tmp_path / "canvas.csv") == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Exercise 1 - ex01 (77)"],
        ["Points Possible", "", "", "", "", "10"],
        ["Doe, Jane", "1234", "0099", "alice", "A", "10"],
        ["Roe, Jim", "1235", "0100", "jim", "B", ""],
    ]
    assert "canvas.csv: guest is not on the roster" in notes


def test_moodle_gets_grade_and_feedback_together(tmp_path):
    roster = Roster([Student("alice", "Jane Doe", "jane@uni.edu", "jdoe", "99")])
    write_reports(tmp_path, [row("alice", wrong=("check_scale",))], roster)
    header, line = read(tmp_path / "moodle.csv")
    assert header == ["Full name", "Username", "ID number", "Email address", EX01, f"{EX01} (feedback)"]
    assert line[:5] == ["Jane Doe", "jdoe", "99", "jane@uni.edu", "8"] and "off by 3" in line[5]


# Overrides -----------------------------------------------------------------------------------------------------------


def test_an_override_holds_and_is_shown_everywhere(tmp_path):
    rows = [row("alice", wrong=("check_scale",)), row("bob")]
    add_override(tmp_path / "overrides.csv", Override("alice", EX01, 9.5, "right idea, wrong file"))
    before = (tmp_path / "overrides.csv").read_bytes()
    for _ in range(2):  # regrading
        write_reports(tmp_path, rows)
        alice = read(tmp_path / "grades.csv")[1]
        assert (
            alice[2] == "9.5" and alice[5] == "score set by the instructor (the checks gave 8): right idea, wrong file"
        )
    for name in ("feedback/alice.html", "class_report.html", "moodle.csv"):
        assert "right idea, wrong file" in (tmp_path / name).read_text()
    assert "right idea" not in (tmp_path / "feedback" / "bob.html").read_text()
    assert (tmp_path / "overrides.csv").read_bytes() == before


def test_an_override_can_stand_for_what_was_never_handed_in():
    made = apply_overrides([row("bob")], {("alice", EX01): Override("alice", EX01, 7, "on paper")})
    assert [(r.student, r.score, r.max_score) for r in made] == [("alice", 7, 10), ("bob", 10, 10)]


def test_the_last_word_on_a_submission_counts(tmp_path):
    path = tmp_path / "overrides.csv"
    add_override(path, Override("alice", EX01, 1, "first, thought"))
    add_override(path, Override("=bob", EX01, 2, "-x"))
    add_override(path, Override("alice", EX01, 3, "second"))
    found = read_overrides(path)
    assert {key: (o.score, o.reason) for key, o in found.items()} == {
        ("alice", EX01): (3, "second"),
        ("=bob", EX01): (2, "-x"),
    }


@pytest.mark.parametrize(("line", "message"), [
    ("alice,ex01,ten,why", "line 2: score must be a number of at least 0, got 'ten'"),
    ("alice,ex01,-1,why", "at least 0"), ("alice,ex01,nan,why", "at least 0"), ("alice,ex01,inf,why", "at least 0"),
    ("alice,ex01,3,", "must not be empty"), (",ex01,3,why", "must not be empty"),
    ("alice,ex01,3,a,b", "a reason with a comma needs quotes"),
    ("alice,ex01,3,a\nalice,ex01,4,b", "line 3: alice and ex01 are in an earlier line"),
])  # fmt: skip
def test_a_line_that_cannot_be_meant_stops_before_anything_is_written(tmp_path, line, message):
    (tmp_path / "overrides.csv").write_text(f"student,exercise,score,reason\n{line}\n")
    with pytest.raises(ValueError, match=message):
        write_reports(tmp_path, [row("alice")])
    assert [path.name for path in tmp_path.iterdir()] == ["overrides.csv"]


def test_overrides_need_their_header(tmp_path):
    (tmp_path / "overrides.csv").write_text("alice,ex01,3,why\n")
    with pytest.raises(ValueError, match="first line must be student,exercise,score,reason"):
        read_overrides(tmp_path / "overrides.csv")
