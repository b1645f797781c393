"""A class in which nearly everybody cheats: nobody gains by it, and the honest few get what they earned.

Every attack is made once at the strongest level of isolation that works here. The slow tests make those that a level of
isolation has to hold off at the second level too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attacks import on_the_file, on_the_machine, on_the_notebook, on_the_recorder, on_the_verdict  # noqa: F401
from attacks.world import ATTACKS, RIGHT, World, notebook

from labsupport.checks import exercise
from labsupport.grading import grade as grading
from labsupport.grading import job as jobs
from labsupport.grading.grade import grade
from labsupport.grading.reports.results import Row
from labsupport.grading.sandbox import shared
from labsupport.grading.sandbox.limits import LEVELS
from labsupport.grading.sandbox.warm import SandboxError, WarmProcess

PARTLY_RIGHT = {"answer-quantize": RIGHT.split("def dequantize")[0]}
HONEST = {"right": {"answer-quantize": RIGHT, "answer-dequantize": RIGHT}, "half": PARTLY_RIGHT, "wrong": {}}
EARNED = {"right": 10, "half": 6, "wrong": 0}
AT_THE_WALL = [name for name, attack in ATTACKS.items() if attack.at_the_wall]
# (how many levels that work here are stronger, attacks)
CLASSES = {"strongest": (0, [*ATTACKS]), "second": (1, AT_THE_WALL)}
SLOW = {"second": pytest.mark.slow}


def processes_inside(folder: Path) -> list[str]:
    """Command lines of warm processes whose files lie in ``folder``, and of all that these have started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def levels() -> list[str]:
    """The levels of isolation that work here, the strongest first."""
    found = []
    with WarmProcess(level="none") as warm:
        for level in LEVELS[:-1]:
            with contextlib.suppress(SandboxError):
                warm.probe(level)
                found.append(level)
    return found


@pytest.fixture(scope="module")
def class_of(levels, tmp_path_factory):
    """Name of a class -> (world, rows by student, level); each class is graded once, when it is first asked for."""
    graded: dict[str, tuple[World, dict[str, Row], str]] = {}

    def grade_once(name: str) -> tuple[World, dict[str, Row], str]:
        stronger, names = CLASSES[name]
        if len(levels) <= stronger:
            pytest.skip(f"of the levels of isolation only {', '.join(levels) or 'none'} works here")
        if name not in graded:
            graded[name] = grade_a_class(World(tmp_path_factory.mktemp("class")), names, levels[stronger])
        return graded[name]

    yield grade_once
    for world, _, _ in graded.values():
        world.close()


def grade_a_class(world: World, names: list[str], level: str) -> tuple[World, dict[str, Row], str]:
    """A class with these attacks, and honest students among them."""
    temporary = world.folder / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("ATTACK_SECRET", "attack-secret")
        patch.setenv("HOME", str(world.home))
        patch.setattr(shared, "WarmProcess", lambda hidden, unsafe: WarmProcess(hidden, level=level))
        patch.setattr(jobs, "WALL", 1.0)  # some attacks only wait
        for number, name in enumerate(names):
            ATTACKS[name].write(world, f"attack-{name}")
            for kind, answers in HONEST.items() if number % 12 == 0 else ():
                world.submit(f"{name}-{kind}", notebook(answers))
        rows = grade(
            world.submissions, world.out, workers=2, seed=world.seed, timeout=9, course=world.course, progress=False
        )
    return world, {row.student: row for row in rows}, level


@pytest.fixture
def graded(request, class_of):
    return class_of(request.param)


EVERY_CLASS = pytest.mark.parametrize(
    "graded", [pytest.param(name, marks=SLOW.get(name, ())) for name in CLASSES], indirect=True
)


@pytest.mark.parametrize(
    "graded, name",
    [pytest.param(c, name, marks=SLOW.get(c, ())) for c, (_, names) in CLASSES.items() for name in names],
    indirect=["graded"],
)
def test_an_attack_gains_nothing(graded, name: str) -> None:
    row: Row = graded[1][f"attack-{name}"]
    assert row.score == 0, row
    assert row.status in ATTACKS[name].statuses, row
    assert row.max_score == exercise(row.exercise).points
    assert "\n" not in row.message and len(row.message) <= 500


@EVERY_CLASS
def test_the_honest_get_what_they_earned(graded) -> None:
    _, rows, _ = graded
    honest = {student: row for student, row in rows.items() if not student.startswith("attack-")}
    assert len(honest) >= 3 and len(honest) >= len(rows) // 6
    for student, row in honest.items():
        kind = student.rpartition("-")[2]
        assert row.score == EARNED[kind], row
        assert row.status == ("ok" if kind == "right" else "failed"), row


@EVERY_CLASS
def test_every_row_says_how_it_was_isolated(graded) -> None:
    _, rows, level = graded
    assert {row.isolation for row in rows.values() if row.status not in ("invalid notebook", "not attempted")} == {
        level
    }


@EVERY_CLASS
def test_the_machine_is_left_clean(graded) -> None:
    world, _, _ = graded
    assert world.broken() == []
    assert os.listdir(world.folder / "temporary") == []
    for _ in range(100):
        if not processes_inside(world.folder):
            return
        time.sleep(0.1)
    assert processes_inside(world.folder) == []


@EVERY_CLASS
def test_what_students_see_holds_no_secret(graded) -> None:
    world, rows, _ = graded
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (world.out / "feedback").iterdir()}
    assert pages.keys() == rows.keys()
    pages["grades"] = (world.out / "grades.csv").read_text(encoding="utf-8")
    for name, text in pages.items():
        assert str(world.seed) not in text and "attack-secret" not in text, name
        assert name == "grades" or ("<script>alert" not in text and "<img src=x" not in text), name
        if not name.startswith("attack-"):  # those show the attack's own code, which names these paths
            assert str(world.folder) not in text, name
    kept = [json.loads(path.read_text()) for path in (world.out / "results").rglob("*.json")]
    assert len(kept) == len(rows) and str(world.seed) not in json.dumps(kept)


@pytest.mark.slow
def test_without_a_wall_these_attacks_succeed(tmp_path: Path, monkeypatch) -> None:
    """So the tests above can fail. Only attacks that do no harm."""
    names = ("read_home", "read_other_submissions", "read_the_catalogue_of_answers", "reach_the_network")
    world = World(tmp_path / "world")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(shared, "WarmProcess", lambda hidden, unsafe: WarmProcess(hidden, level="none"))
    seen: list[str] = []

    def graded_and_watched(job: jobs.Job) -> Row:
        row = jobs.grade_one(job)
        seen.extend(processes_inside(tmp_path))
        return row

    monkeypatch.setattr(grading, "grade_one", graded_and_watched)
    world.submit("honest-1", notebook(HONEST["right"]))
    for name in names:
        ATTACKS[name].write(world, name)
    rows = grade(world.submissions, world.out, seed=world.seed, course=world.course, progress=False)
    assert [row.student for row in rows if row.score > 0] == sorted([*names, "honest-1"])
    assert {row.isolation for row in rows} == {"none"}
    assert world.broken()
    assert seen  # the warm process: what looks for left-over processes does find them
    world.close()


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40 and len(AT_THE_WALL) >= 30
    assert {*AT_THE_WALL} < {*ATTACKS}
