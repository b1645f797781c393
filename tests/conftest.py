"""What every test shares: Hypothesis without deadlines, matplotlib without a window, and where the course lies."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("MPLBACKEND", "Agg")
# The chapters use SmolLM2 where it is cached, which takes minutes: their tests are about `tiny`.
os.environ.setdefault("LABSUPPORT_SMOLLM2", "0")

# A deadline would be a timed assertion. In CI the same examples are drawn each time, so a failure can be repeated.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

ROOT = Path(__file__).parents[1]
# programs that a test starts in another folder find the package too, whether or not it is installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


# A file's tests run in one worker, since they share what its fixtures set up; except in these files, whose tests share
# nothing that is expensive ("test"), or only those of one parameter do, for example of one notebook ("parameter").
SPREAD = {
    "tests/browser/test_chapters.py": "parameter",
    "tests/checks/test_catalogue.py": "test",
    "tests/grading/test_catalogues.py": "test",
    "tests/grading/test_nbgrader.py": "test",
    "tests/notebooks/test_chapters.py": "test",
    "tests/notebooks/test_exercises.py": "parameter",
}


class BySharedSetup(LoadScopeScheduling):
    """What stays together on one worker. (pytest-xdist's own groups have no effect with pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        spread = SPREAD.get(file, "file")
        return {"file": file, "test": nodeid, "parameter": f"{file}{test[test.find('[') :]}"}[spread]


@pytest.hookimpl(optionalhook=True)  # there is no such hook where pytest-xdist is switched off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    return BySharedSetup(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: with two workers, one that starts last is waited for alone."""
    long = ("slow", "browser", "smollm2")
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in long))


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def tracked_files(root: Path) -> list[Path]:
    """Every file that is, or is about to be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [root / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]
