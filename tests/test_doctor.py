from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from labsupport import chromium, doctor, requirements
from labsupport.doctor import Finding

READY = [Finding("packages", "torch", "2.13"), Finding("extras", "serve", "absent", "note", "install serve")]
BROKEN = [*READY, Finding("packages", "numpy", "not installed", "missing", "install numpy")]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions of packages to pretend; None: not installed."""
    pretended: dict[str, str | None] = {}
    real = requirements.version
    monkeypatch.setattr(requirements, "version", lambda name: pretended[name] if name in pretended else real(name))
    return pretended


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_this_installation_is_ready() -> None:
    findings = doctor.examine()
    ready, message = doctor.verdict(findings)
    assert ready, doctor.report(findings)
    assert message == doctor.report(findings).splitlines()[-1] == f"ready for {doctor.chapters()}"
    assert {"this machine", "devices", "packages", "extras", "notebooks", "models"} <= {each.area for each in findings}


def test_chapters_are_those_whose_notebooks_exist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({path.name[:2] for path in root.glob("notebooks/[0-9][0-9]*.ipynb")}) == doctor.CHAPTERS
    monkeypatch.setattr(doctor, "CHAPTERS", 1)
    assert doctor.chapters() == "chapter 1"
    monkeypatch.setattr(doctor, "CHAPTERS", 3)
    assert doctor.chapters() == "chapters 1 to 3"


def test_notes_do_not_stop_anyone_but_what_is_missing_does() -> None:
    assert doctor.verdict(READY)[0]
    ready, message = doctor.verdict(BROKEN)
    assert not ready
    assert message == "not ready: numpy. Get it with: install numpy"


def test_the_same_remedy_is_named_once() -> None:
    missing = [Finding("packages", name, "", "missing", "install all") for name in ("numpy", "pandas")]
    assert doctor.verdict(missing)[1] == "not ready: numpy, pandas. Get it with: install all"


def test_report_marks_and_explains_what_is_missing() -> None:
    lines = doctor.report(BROKEN).splitlines()
    assert "  ! numpy  not installed" in lines
    assert any(line.endswith("get it with: install numpy") for line in lines)
    assert lines[-1].startswith("not ready")


def test_report_is_plain_ascii_but_for_paths() -> None:
    home = str(Path(doctor.__file__).parents[1])
    assert doctor.report(doctor.examine()).replace(home, "").isascii()


def test_a_missing_core_package_is_found(versions: dict[str, str | None]) -> None:
    versions["gguf"] = None
    finding = next(each for each in doctor.core_packages() if each.name == "gguf")
    assert finding.state == "missing"
    assert "pip install" in finding.remedy


def test_a_core_package_that_is_too_old_is_found(versions: dict[str, str | None]) -> None:
    versions["torch"] = "2.8.1+cpu"
    finding = next(each for each in doctor.core_packages() if each.name == "torch")
    assert (finding.state, finding.detail) == ("missing", "2.8.1+cpu, but >=2.9 is needed")


@pytest.mark.parametrize("newer", ["2.9.0+cu128", "2.10.0", "3.0.0a0+git1234"])
def test_builds_and_prereleases_of_torch_count(versions: dict[str, str | None], newer: str) -> None:
    versions["torch"] = newer
    assert states(list(doctor.core_packages()))["torch"] == "ok"


def test_an_incomplete_extra_names_the_package_and_the_command(versions: dict[str, str | None]) -> None:
    versions["fastapi"] = None
    finding = next(each for each in doctor.extras() if each.name == "serve")
    assert finding.state == "note"
    assert "fastapi" in finding.detail
    assert finding.remedy == 'python -m pip install -c constraints.txt -e ".[serve]"'


def test_every_extra_of_the_package_is_examined(root: Path) -> None:
    import tomllib

    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {each.name for each in doctor.extras()} == set(declared)


def test_a_kernel_is_needed_jupyterlab_is_not(versions: dict[str, str | None]) -> None:
    versions["jupyterlab"] = None
    assert states(list(doctor.front_end()))["JupyterLab"] == "note"
    versions["ipykernel"] = None
    assert states(list(doctor.front_end())) == {"kernel": "missing"}


def test_a_front_end_of_the_wrong_generation_is_found(
    versions: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["jupyterlab_widgets~=3.0.15"])
    versions["jupyterlab_widgets"] = "1.1.11"
    finding = doctor.widget_front_end("notebooks")
    assert finding.state == "missing"
    assert "jupyterlab_widgets~=3.0.15; found 1.1.11" in finding.detail


def test_a_front_end_without_its_extension_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.widget_front_end("notebooks").state == "ok"
    monkeypatch.setattr(metadata, "files", lambda name: [])
    assert "lacks its JupyterLab extension" in doctor.widget_front_end("notebooks").detail


def test_missing_weights_stop_chapter_1_but_an_empty_cache_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("tiny", "smollm2-135m")
    rows = [{"name": name, "present": False, "source": "", "megabytes": 0.0} for name in names]
    monkeypatch.setattr("labsupport.lm.load.model_status", lambda: rows)
    assert states(list(doctor.models())) == {"tiny": "missing", "smollm2-135m": "note"}


def test_an_examination_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "models", broken)
    finding = next(each for each in doctor.examine() if each.area == "problems")
    assert finding.state == "missing"
    assert "OSError: no such library" in finding.detail


def test_chromium_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chromium, "APPS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium.find_chromium() is None
    assert next(iter(doctor.browser())).state == "note"
    browser = tmp_path / "google-chrome"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    assert chromium.find_chromium() == str(browser)
