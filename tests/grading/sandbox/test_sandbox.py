"""The sandbox on its own: levels, limits, what the warm process gives away, and what is left afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from labsupport.checks import exercise
from labsupport.checks.plain import decode, encode
from labsupport.grading.sandbox.limits import Limits
from labsupport.grading.sandbox.warm import SandboxError, WarmProcess


@pytest.fixture(scope="module")
def started():
    """One warm process for all levels, which are entered anew for each run: starting it imports torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABSUPPORT_TEST_SECRET", "x")
        process = WarmProcess(level="none")
    with process:
        yield process


@pytest.fixture(scope="module", params=["namespaces", "landlock", "none"])
def warm(request, started):
    started.level = request.param
    if request.param != "none":
        probe_or_skip(started)
    return started


def probe_or_skip(process: WarmProcess) -> None:
    try:
        process.probe()
    except SandboxError as error:
        pytest.skip(f"{process.level} does not work here: {error}")


def says(warm: WarmProcess, source: str, limits: Limits | None = None) -> str | None:
    """The error that a cell ends with, which is how it reports something."""
    return warm.run([("cell", source)], limits=limits).cells[0]


def test_cells_run_as_in_a_notebook(warm) -> None:
    cells = [
        ("a", "x = 1\n%time y = 2"),
        ("b", "1 / 0"),
        ("c", "assert (x, y, __name__, len(In)) == (1, 2, '__main__', 4)"),
    ]
    outcome = warm.run(cells)
    assert outcome.done and outcome.ended == "" and outcome.exit_code == 0
    assert outcome.cells == {0: None, 1: "ZeroDivisionError: division by zero", 2: None}


def test_checks_observe_and_their_values_come_back(warm) -> None:
    checks = exercise("ex03_mha_vs_gqa").checks
    inputs = [check.inputs(3) for check in checks]
    source = (
        "def attention_parameters(h, n, k): return 2 * h * h + 2 * h * (h // n) * k\ndef kv_bytes_per_token(*a): 1 / 0"
    )
    outcome = warm.run([("cell", source)], "ex03_mha_vs_gqa", {i: encode(each) for i, each in enumerate(inputs)})
    verdicts = [check.verdict(inputs[i], decode(outcome.values[i])) for i, check in enumerate(checks)]
    assert [verdict.passed for verdict in verdicts] == [True, True, False, False]
    assert "ZeroDivisionError" in verdicts[2].message and "line 2" not in verdicts[0].message
    assert outcome.started == (0, 1, 2, 3)


def test_runs_share_nothing(warm) -> None:
    assert says(warm, "import torch; torch.shared = 1; open('shared', 'w').close()") is None
    assert says(warm, "import torch, os; assert not hasattr(torch, 'shared') and os.listdir('.') == []") is None


def test_nothing_is_inherited(warm) -> None:
    assert says(warm, "import os; assert 'TEST_SECRET' not in str(os.environ)") is None
    assert says(warm, "open('/proc/self/environ').read().index('TEST_SECRET')") in (
        "ValueError: substring not found",
        "PermissionError: [Errno 13] Permission denied: '/proc/self/environ'",
    )
    source = """
import os
found = []
for descriptor in range(300):
    try:
        os.fstat(descriptor)
        found.append(descriptor)
    except OSError: pass
assert found == [0, 1, 2, 3], found
"""
    assert says(warm, source) is None


@pytest.mark.parametrize(
    "source, ended",
    [
        ("while True: pass", "timeout"),
        ("while True: print('x' * 10000)", "output"),
        ("import os\nwhile True: os.write(3, b'v' + bytes(4) + (1 << 40).to_bytes(8, 'little'))", "result"),
    ],
)
def test_a_run_that_goes_too_far_is_ended(warm, source: str, ended: str) -> None:
    outcome = warm.run([("cell", source)], limits=Limits(seconds=2, seconds_a_step=2, output_bytes=1 << 20))
    assert outcome.ended == ended and not outcome.done


WORK = """
import time
time.sleep(1.5)  # longer by the clock than the processor time that is allowed, however the machine shares it out
start = time.process_time()
while time.process_time() < start + 0.5: pass
"""


def test_a_busy_machine_fails_nobody(warm) -> None:
    """Beside twice as many endless processes as there are processors."""
    endless = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        outcome = warm.run([("cell", WORK)], limits=Limits(seconds=1.4, seconds_a_step=1.4, wall=40))
    finally:
        for process in endless:
            process.kill()
            process.wait()
    assert outcome.done and outcome.cells == {0: None}, outcome


def test_all_processes_and_threads_are_counted_together(warm) -> None:
    source = f"import os\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: pass\n{WORK}\ntime.sleep(100)"
    assert warm.run([("cell", source)], limits=Limits(seconds=2, seconds_a_step=2, wall=40)).ended == "timeout"


def test_who_only_waits_is_ended_by_the_clock(warm) -> None:
    outcome = warm.run([("cell", "import time; time.sleep(100)")], limits=Limits(seconds=1, seconds_a_step=0.2, wall=3))
    assert outcome.ended == "asleep" and outcome.cpu_seconds < 1


def test_what_took_too_long_is_said(warm) -> None:
    checks = exercise("ex03_mha_vs_gqa").checks
    inputs = {index: encode(check.inputs(3)) for index, check in enumerate(checks)}
    source = "def attention_parameters(h, n, k):\n    while True: pass\ndef kv_bytes_per_token(*a): pass"
    outcome = warm.run([("cell", source)], "ex03_mha_vs_gqa", inputs, Limits(seconds=2, seconds_a_step=0.5))
    assert outcome.ended == "timeout" and outcome.started == (0,)
    assert re.fullmatch(r"attention_parameters\(\d+, \d+, \d+\)", outcome.calling)


def test_a_server_is_visited_from_outside(warm) -> None:
    check: Any = exercise("ex06_inference_api").checks[0]
    inputs = check.inputs(3)
    visits = {0: lambda channel, hello: check.receive(channel, inputs, hello)}
    source = "import os\ndef create_app(engine):\n    raise ValueError(sorted(os.listdir('/proc/self/fd'))[:5])"
    for cells in ([], [("cell", source)]):
        outcome = warm.run(cells, "ex06_inference_api", {0: b""}, visits=visits)
        values = decode(outcome.values[0])
        verdict = check.verdict(inputs, values)
        assert not verdict.passed and verdict.attempted is bool(cells)
        assert ("ValueError" if cells else "there is no function create_app") in verdict.message


def test_memory_is_limited_in_one_process_and_in_many(warm) -> None:
    limits = Limits(seconds=120, seconds_a_step=120, memory_bytes=600 << 20)
    assert says(warm, "bytearray(2 << 30)", limits) == "MemoryError"
    many = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        kept = bytearray(b'x') * (300 << 20)
        time.sleep(1000)
time.sleep(1000)
"""
    assert warm.run([("cell", many)], limits=limits).ended == "memory"


def test_disk_and_single_files_are_limited(warm) -> None:
    limits = Limits(file_bytes=2 << 20, disk_bytes=8 << 20)
    assert "OSError" in (says(warm, "open('f', 'wb').write(bytes(3 << 20))", limits) or "")
    many = "import time\nfor i in range(20):\n    with open(str(i), 'wb') as f: f.write(bytes(1 << 20))\ntime.sleep(5)"
    outcome = warm.run([("cell", many)], limits=limits)
    assert outcome.ended == "disk" or "No space left" in (outcome.cells[0] or ""), outcome


def test_the_end_of_the_process_is_told(warm) -> None:
    assert warm.run([("cell", "import os; os._exit(5)")]).exit_code == 5
    outcome = warm.run([("cell", "import ctypes; ctypes.string_at(0)")])
    assert outcome.exit_code == -signal.SIGSEGV and not outcome.done and outcome.ended == ""


def test_runs_from_many_threads_do_not_mix(warm) -> None:
    found: dict[int, str | None] = {}

    def one(number: int) -> None:
        found[number] = says(warm, f"import time; time.sleep(0.2); raise ValueError({number})")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"ValueError: {number}" for number in range(6)}


def test_a_warm_process_that_died_is_started_again() -> None:
    with WarmProcess(level="none") as process:
        first = process._process
        assert first is not None
        first.kill()
        first.wait()
        assert says(process, "1 / 0") == "ZeroDivisionError: division by zero"
        assert process._process is not first


def test_closing_ends_what_still_runs_and_removes_all_files() -> None:
    process, failed = WarmProcess(level="none"), []

    def endless() -> None:
        try:
            process.run([("cell", "import time; time.sleep(1000)")])
        except SandboxError as error:
            failed.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    while not list((process._folder / "scratch").iterdir()):
        time.sleep(0.05)
    time.sleep(0.5)
    folder = process._folder
    process.close()
    thread.join(timeout=60)
    assert not thread.is_alive() and len(failed) == 1
    assert not folder.exists()


def test_without_isolation_it_refuses_and_says_what_was_tried(monkeypatch) -> None:
    monkeypatch.setattr(WarmProcess, "_start", lambda self: None)
    monkeypatch.setattr(
        WarmProcess, "probe", lambda self, level: (_ for _ in ()).throw(SandboxError(f"{level} is forbidden"))
    )
    with pytest.raises(
        SandboxError, match=r"no isolation works .*namespaces is forbidden.*landlock is forbidden.*--unsafe-no-sandbox"
    ):
        WarmProcess()
    with WarmProcess(unsafe_no_sandbox=True) as process:
        assert process.level == "none"


def test_the_probe_notices_a_sandbox_that_does_not_hold(started) -> None:
    with pytest.raises(SandboxError, match="a submission could read files of others"):
        started.probe("none")


def test_hidden_folders_inside_of_shown_ones_are_covered() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    tried = []
    with WarmProcess(hidden=[str(packages / "nbval")], level="none") as process:
        for level in ("namespaces", "landlock"):
            process.level = level
            try:
                process.probe()
            except SandboxError:
                continue
            tried.append(level)
            assert says(process, "import nbclient.util, nbformat") is None
            outcome = says(process, f"print(open({str(packages / 'nbval' / '__init__.py')!r}).read(1))")
            assert outcome is not None and outcome.startswith(("FileNotFoundError", "PermissionError"))
    if not tried:
        pytest.skip("no level of isolation works here")
