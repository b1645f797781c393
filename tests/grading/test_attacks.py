"""A class in which nearly everybody cheats: nobody gains by it, and the honest few get what they earned."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attacks import on_the_file, on_the_machine, on_the_notebook, on_the_verdict  # noqa: F401
from attacks.world import ATTACKS, RIGHT, World, notebook

from labsupport.grading import job as jobs
from labsupport.grading.grade import grade
from labsupport.grading.reports.results import Row
from labsupport.grading.sandbox import zygote
from labsupport.grading.sandbox.warm import SandboxError, WarmProcess

pytestmark = pytest.mark.slow
PARTLY_RIGHT = {"answer-quantize": RIGHT.split("def dequantize")[0]}
HONEST = {"right": {"answer-quantize": RIGHT, "answer-dequantize": RIGHT}, "half": PARTLY_RIGHT, "wrong": {}}
EARNED = {"right": 10, "half": 6, "wrong": 0}


def processes_inside() -> list[str]:
    """Command lines of processes that a sandbox, or a warm process, may have left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "labsupport.grading.sandbox.zygote" in command or folder.stat().st_uid >= zygote.FIRST_UID:
                found.append(command)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def graded(request, tmp_path_factory):
    """(world, rows by student) of a class with every attack, and honest students among them."""
    world = World(tmp_path_factory.mktemp(request.param))
    temporary = world.folder / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("ATTACK_SECRET", "attack-secret")
        patch.setenv("HOME", str(world.home))
        patch.setattr(jobs, "WarmProcess", lambda hidden, unsafe: WarmProcess(hidden, level=request.param))
        for number, (name, attack) in enumerate(ATTACKS.items()):
            attack.write(world, f"attack-{name}")
            for kind, answers in HONEST.items() if number % 12 == 0 else ():
                world.submit(f"{name}-{kind}", notebook(answers))
        try:
            with WarmProcess(level=request.param) as warm:
                warm.probe()
        except SandboxError as error:
            pytest.skip(f"{request.param} does not work here: {error}")
        rows = grade(
            world.submissions, world.out, workers=2, seed=world.seed, timeout=9, course=world.course, progress=False
        )
        yield world, {row.student: row for row in rows}
    world.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(name: str, graded) -> None:
    row: Row = graded[1][f"attack-{name}"]
    assert row.score == 0, row
    assert row.status in ATTACKS[name].statuses, row
    assert row.max_score == 10
    assert "\n" not in row.message and len(row.message) <= 500


def test_the_honest_get_what_they_earned(graded) -> None:
    _, rows = graded
    honest = {student: row for student, row in rows.items() if not student.startswith("attack-")}
    assert len(honest) >= 20
    for student, row in honest.items():
        kind = student.rpartition("-")[2]
        assert row.score == EARNED[kind], row
        assert row.status == ("ok" if kind == "right" else "failed"), row


def test_every_row_says_how_it_was_isolated(graded, request) -> None:
    world, rows = graded
    levels = {row.isolation for row in rows.values() if row.status not in ("invalid notebook", "not attempted")}
    assert levels == {world.folder.name.rstrip("0123456789")}


def test_the_machine_is_left_clean(graded) -> None:
    world, _ = graded
    assert world.broken() == []
    assert os.listdir(world.folder / "temporary") == []
    for _ in range(100):
        if not processes_inside():
            return
        time.sleep(0.1)
    assert processes_inside() == []


def test_what_students_see_holds_no_secret(graded) -> None:
    world, rows = graded
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (world.out / "feedback").iterdir()}
    assert pages.keys() == rows.keys()
    pages["grades"] = (world.out / "grades.csv").read_text(encoding="utf-8")
    for name, text in pages.items():
        assert str(world.seed) not in text and "attack-secret" not in text, name
        assert name == "grades" or ("<script>alert" not in text and "<img src=x" not in text), name
        if not name.startswith("attack-"):  # those show the attack's own code, where these paths stand
            assert str(world.folder) not in text, name
    kept = [json.loads(path.read_text()) for path in (world.out / "results").rglob("*.json")]
    assert len(kept) == len(rows) and str(world.seed) not in json.dumps(kept)


def test_without_a_wall_these_attacks_succeed(tmp_path: Path, monkeypatch) -> None:
    """So the tests above can fail. Only attacks that do no harm."""
    names = ("read_home", "read_other_submissions", "read_the_catalogue_of_answers", "reach_the_network")
    world = World(tmp_path / "world")
    monkeypatch.setattr(jobs, "WarmProcess", lambda hidden, unsafe: WarmProcess(hidden, level="none"))
    world.submit("honest-1", notebook(HONEST["right"]))
    for name in names:
        ATTACKS[name].write(world, name)
    rows = grade(world.submissions, world.out, seed=world.seed, course=world.course, progress=False)
    assert [row.student for row in rows if row.score > 0] == sorted([*names, "honest-1"])
    assert {row.isolation for row in rows} == {"none"}
    assert world.broken()
    world.close()


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40
