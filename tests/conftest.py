"""What every test shares: Hypothesis without deadlines, matplotlib without a window, and where the course lies."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: with two workers, one that starts last is waited for alone. And what stays together.

    A file's tests run in one worker, since they share what its fixtures set up; unless the file says otherwise:

        SPREAD = "test"         its tests share nothing that is dear
        SPREAD = "parameter"    only those of one parameter do, for example of one notebook
    """
    long = ("slow", "browser", "smollm2")
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in long))
    for item in items:
        spread = getattr(getattr(item, "module", None), "SPREAD", "file")
        group = item.nodeid.partition("::")[0]
        if spread == "parameter":
            # no brackets: pytest-xdist takes a name that ends in one for that of a test, and ignores the group
            group += f" {item.callspec.id}" if hasattr(item, "callspec") else f" {item.name}"
        if spread != "test":
            item.add_marker(pytest.mark.xdist_group(group))


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
