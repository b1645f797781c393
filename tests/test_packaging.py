"""The package as others get it: what it imports, what its wheel holds, and that its papers agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import labsupport

PACKAGED = {".py", ".pyi", ".typed", ".json", ".safetensors", ".j2"}
NOT_TEXT = {".png", ".safetensors", ".gguf", ".ico"}
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> list[str]:
    return [Requirement(text).name for text in requirements]


def every_requirement(pyproject: dict) -> list[Requirement]:
    project = pyproject["project"]
    lists = (project["dependencies"], *project["optional-dependencies"].values())
    return [Requirement(text) for texts in lists for text in texts]


# ------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("module", ["labsupport", "labsupport.cli", "labsupport.doctor", "labsupport.quantization"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'pandas', 'matplotlib'}} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == []


def test_every_folder_can_be_had_from_the_package(root: Path) -> None:
    folders = {path.parent.name for path in (root / "labsupport").glob("*/__init__.py")}
    assert folders == set(labsupport.__all__)


def test_subpackages_are_imported_when_asked_for() -> None:
    code = "import labsupport; print(labsupport.lm.__name__, 'lm' in dir(labsupport), hasattr(labsupport, 'no_such'))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == ["labsupport.lm", "True", "False"]


# --------------------------------------------------------------------------------------------- versions and extras


def test_no_upper_caps(pyproject: dict) -> None:
    for requirement in every_requirement(pyproject):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators <= {">="}, requirement


def test_colab_is_not_shut_out(pyproject: dict) -> None:
    colab = {"torch": "2.11", "pandas": "2.2.3", "matplotlib": "3.10.0", "ipywidgets": "7.7.1"}
    core = {each.name: each for each in map(Requirement, pyproject["project"]["dependencies"])}
    for name, version in colab.items():
        assert core[name].specifier.contains(version), core[name]
    assert Version("3.13") in Requirement(f"python{pyproject['project']['requires-python']}").specifier


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-colab.txt"])
def test_pins_satisfy_what_pyproject_asks_for(file: str, root: Path, pyproject: dict) -> None:
    lines = [line for line in (root / file).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pins = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.!]+)", line).groups()  # type: ignore[union-attr]
        pins[canonicalize_name(name)] = version
    assert len(pins) == len(lines)
    for requirement in every_requirement(pyproject):
        pinned = pins.get(canonicalize_name(requirement.name))
        if file == "constraints.txt":
            assert pinned, f"{requirement.name} is not pinned"
        if pinned:
            assert requirement.specifier.contains(pinned), f"{requirement} but {pinned} is pinned"


def test_every_dependency_and_extra_has_its_reason_in_contributing(root: Path, pyproject: dict) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+(?:, \w+)*) \| (.+) \|$", text, flags=re.MULTILINE)
    documented = {(name, group) for name, groups, _ in rows for group in groups.split(", ")}
    project = pyproject["project"]
    declared = {(name, "core") for name in names(project["dependencies"])}
    declared |= {(name, extra) for extra, texts in project["optional-dependencies"].items() for name in names(texts)}
    assert documented == declared
    assert all(len(reason) > 10 for *_, reason in rows)


def test_conda_installs_what_make_test_installs(root: Path, pyproject: dict) -> None:
    environment = (root / "environment.yml").read_text(encoding="utf-8")
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    conda = re.search(r"-e \.\[([\w,]+)\]", environment)
    make = re.search(r"install,([\w,$()]*test[\w,$()]*)\)$", makefile, re.MULTILINE)
    assert conda and make
    assert (
        set(conda[1].split(","))
        == set(make[1].replace("$(,)", ",").split(","))
        == set(pyproject["project"]["optional-dependencies"])
    )
    assert f"python{pyproject['project']['requires-python']}" in environment
    assert "constraints.txt" in environment


# ----------------------------------------------------------------------------------------------------------- wheel


def test_wheel_holds_the_weights_and_nothing_of_the_tests(root: Path, tmp_path: Path) -> None:
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    arguments = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    source = tmp_path / "source"  # a copy, so that setuptools leaves no build/ in the checkout
    for path in (root / "labsupport").rglob("*"):
        if path.is_file() and path.suffix in PACKAGED:
            copy = source / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((root / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", *arguments, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert labsupport.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        sizes = sum(entry.file_size for entry in archive.infolist() if entry.filename.endswith(".safetensors"))
    expected = {
        path.relative_to(root).as_posix()
        for path in (root / "labsupport").rglob("*")
        if path.suffix in PACKAGED and "__pycache__" not in path.parts
    }
    assert expected <= set(files)
    assert "labsupport/lm/weights/model.safetensors" in files
    assert 1e6 < sizes <= 6e6
    assert {Path(file).parts[0] for file in files if ".dist-info" not in file} == {"labsupport"}


# -------------------------------------------------------------------------------------------------------- documents


def test_the_python_in_the_documents_runs(root: Path, tmp_path: Path) -> None:
    """Examples of README.md, in their order, in one namespace."""
    examples = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert examples
    script = tmp_path / "readme.py"
    script.write_text("\n".join(examples), encoding="utf-8")
    outcome = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    before, after = map(float, re.findall(r"\d+\.\d+", outcome.stdout)[-2:])
    assert 1 < before < after < 1.5 * before, outcome.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_and_commands_exist(document: str, root: Path) -> None:
    text = (root / document).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets
    from labsupport.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"(?m)(?:^|/|\\)labsupport ([a-z]+)", code)) <= commands


def test_the_courses_address_is_the_same_everywhere(root: Path, tracked_files: list[Path], pyproject: dict) -> None:
    assert pyproject["project"]["urls"]["Homepage"] == labsupport.COURSE_URL
    owner_and_name = labsupport.COURSE_URL.removeprefix("https://github.com/")
    pattern = re.compile(r"github(?:\.com|usercontent\.com)?/([\w.-]+/labsupport)\b")
    other = {
        f"{path.relative_to(root)}: {found}"
        for path, text in texts(tracked_files)
        for found in pattern.findall(text)
        if found != owner_and_name
    }
    assert not other


def test_notebooks_install_from_the_courses_address(root: Path) -> None:
    for path in sorted(root.glob("notebooks/*.ipynb")) + sorted(root.glob("solutions/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
        addresses = set(re.findall(r"https://github\.com/[\w.-]+/[\w-]+", first))
        assert addresses == {labsupport.COURSE_URL}, path.name


# Written in pieces, so that this file does not find itself.
REGISTRIES = [
    ("py" + "pi.org", "the Python package index"),
    ("python" + "hosted.org", "its files"),
    ("npmjs" + ".org", "the npm registry"),
    ("download.py" + "torch.org", "PyTorch's index"),
    ("deb.deb" + "ian.org", "Debian's archive"),
]
PRIVATE_PATHS = re.compile(r"(?<![\w.~])/(?:work|root|farm|home/\w+|Users/\w+|tmp/(?!pytest)\w+)/")


def texts(files: list[Path]) -> list[tuple[Path, str]]:
    return [(path, path.read_text(encoding="utf-8")) for path in files if path.suffix not in NOT_TEXT]


def test_no_file_names_a_registry_or_somebodys_folders(root: Path, tracked_files: list[Path]) -> None:
    found = []
    for path, text in texts(tracked_files):
        name = path.relative_to(root)
        found += [f"{name}: {what}" for host, what in REGISTRIES if host in text]
        found += [f"{name}: {match.group()}" for match in PRIVATE_PATHS.finditer(text)]
    assert not found


def test_nothing_large_is_committed(root: Path, tracked_files: list[Path]) -> None:
    large = {str(path.relative_to(root)) for path in tracked_files if path.stat().st_size > 1.5e6}
    assert large <= {"labsupport/lm/weights/model.safetensors"}
