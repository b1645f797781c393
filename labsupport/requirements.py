"""What labsupport requires and what is installed, read from pyproject.toml and the packages' metadata."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from labsupport import COURSE_URL

PACKAGE = Path(__file__).parent


def declared(extra: str | None) -> list[Requirement]:
    """What pyproject.toml requires: the core (None) or one extra, for this Python and system."""
    found = [Requirement(text) for text in _declared(extra)]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra or ""})]


def of(name: str) -> list[Requirement]:
    """What an installed package requires, without its extras; [] if it is not installed."""
    try:
        found = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def satisfied(requirement: Requirement) -> bool:
    installed = version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def version(name: str) -> str | None:
    """The installed version, None if there is none; from the metadata, as importing everything would take long."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pip_install(extra: str | None = None) -> str:
    """The command that installs the core or an extra, in a checkout or from the course's address."""
    suffix = f"[{extra}]" if extra else ""
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return f'python -m pip install -c constraints.txt -e ".{suffix}"'
    return f'python -m pip install "labsupport{suffix} @ git+{COURSE_URL}"'


def _declared(extra: str | None) -> list[str]:
    """From pyproject.toml in a checkout, as the metadata of an editable installation may be stale; else from that."""
    pyproject = PACKAGE.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        if project["name"] == "labsupport":
            return project["optional-dependencies"][extra] if extra else project["dependencies"]
    all_of_them = metadata.requires("labsupport") or []
    return [text for text in all_of_them if ("extra ==" in text) == (extra is not None)]
