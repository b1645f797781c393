"""`labsupport doctor`: what is installed, which device, which models are cached, what is missing and how to get it.

Every examination is a function that returns findings. One that fails becomes a finding itself: a doctor that crashes
on a broken installation is of no use.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from labsupport import COURSE_URL, __version__

State = Literal["ok", "note", "missing"]  # note: something optional is absent; missing: a chapter cannot run

PACKAGE = Path(__file__).parent
CHAPTERS = 4  # notebooks that exist; a test counts them
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
WIDGET_MANAGER = "@jupyter-widgets/jupyterlab-manager"
EXTRAS = {
    "lab": "JupyterLab",
    "fast": "the fastest 4-bit products on a CPU",
    "test": "the tests",
    "grade": "grading a class",
    "serve": "serving a model",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is a command or a short instruction."""

    area: str
    name: str
    detail: str
    state: State = "ok"
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order of the report."""
    examinations: tuple[Callable[[], Iterable[Finding]], ...] = (
        machine, accelerators, core_packages, extras, front_end, models, browser,
    )  # fmt: skip
    findings: list[Finding] = []
    for examination in examinations:
        try:
            findings += examination()
        except Exception as error:
            detail = f"could not be examined ({type(error).__name__}: {error})"
            findings.append(Finding("problems", examination.__name__.replace("_", " "), detail, "missing"))
    return findings


def verdict(findings: Iterable[Finding]) -> tuple[bool, str]:
    """Whether the chapters can be worked through, and the report's last line."""
    missing = [finding for finding in findings if finding.state == "missing"]
    if not missing:
        return True, f"ready for {chapters()}"
    remedies = dict.fromkeys(finding.remedy for finding in missing if finding.remedy)
    how = "; then ".join(remedies) or f"see {COURSE_URL}"
    return False, f"not ready: {', '.join(finding.name for finding in missing)}. Get it with: {how}"


def report(findings: list[Finding]) -> str:
    """The findings as plain text, a paragraph an area."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            lines += ["", area]
        mark = {"ok": "  ", "note": "- ", "missing": "! "}[finding.state]
        lines.append(f"  {mark}{finding.name.ljust(width)}  {finding.detail}".rstrip())
        if finding.remedy:
            lines.append(f"    {' ' * width}  get it with: {finding.remedy}")
    return "\n".join([*lines[1:], "", verdict(findings)[1]])


def as_dict(findings: list[Finding]) -> dict[str, object]:
    """The report for programs (`--json`)."""
    ready, message = verdict(findings)
    return {"ready": ready, "message": message, "findings": [asdict(finding) for finding in findings]}


def chapters() -> str:
    """The chapters that this version holds: "chapter 1", "chapters 1 to 3"."""
    return "chapter 1" if CHAPTERS == 1 else f"chapters 1 to {CHAPTERS}"


def machine() -> Iterable[Finding]:
    area = "this machine"
    yield Finding(area, "labsupport", f"{__version__} in {PACKAGE}")
    yield Finding(area, "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding(area, "system", f"{platform.system()} {platform.release()}, {platform.machine()}")

    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available >= 2 * 2**30
    yield Finding(
        area,
        "memory",
        f"{gib(memory.available)} of {gib(memory.total)} available",
        "ok" if enough else "note",
        "" if enough else "close other programs: SmolLM2 needs 2 GiB, `tiny` much less",
    )
    free = shutil.disk_usage(PACKAGE).free
    enough = free >= 3 * 2**30
    yield Finding(
        area,
        "disk",
        f"{gib(free)} free",
        "ok" if enough else "note",
        "" if enough else "free some space: an installation takes 2 GiB, SmolLM2 another 0.6 GiB",
    )


def accelerators() -> Iterable[Finding]:
    area = "devices"
    if find_spec("torch") is None:
        return  # core_packages says so
    import torch

    yield Finding(area, "CPU", f"{cpu_features()}; {torch.get_num_threads()} of {os.cpu_count()} cores used")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Finding(area, f"CUDA {index}", f"{device.name}, {gib(device.total_memory)}")
    else:
        yield Finding(area, "CUDA", "none found; every chapter runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding(area, "MPS", "available (Apple GPU)")

    from labsupport.quantization.fast.available import available_kernels

    for job, kernel in available_kernels().items():
        yield Finding(area, job, kernel)


def cpu_features() -> str:
    """What decides the speed of integer matrix products: "AVX2", "AVX512 with VNNI", ..."""
    import torch

    features = []
    for name, probe in (("VNNI", "_is_vnni_supported"), ("AMX", "_is_amx_tile_supported")):
        try:
            if getattr(torch.cpu, probe)():
                features.append(name)
        except (AttributeError, RuntimeError):  # private names: absent in some versions, not built on some systems
            continue
    return " with ".join([torch.backends.cpu.get_cpu_capability(), *[" and ".join(features)] * bool(features)])


def core_packages() -> Iterable[Finding]:
    area = "packages"
    unsatisfied = []
    for requirement in requirements(extra=None):
        installed = version(requirement.name)
        if installed is None:
            unsatisfied.append(str(requirement))
            yield Finding(area, requirement.name, "not installed", "missing", pip_install())
        elif not requirement.specifier.contains(installed, prereleases=True):
            unsatisfied.append(str(requirement))
            needed = f"{installed}, but {requirement.specifier} is needed"
            yield Finding(area, requirement.name, needed, "missing", pip_install())
        else:
            yield Finding(area, requirement.name, installed)


def extras() -> Iterable[Finding]:
    area = "extras"
    for extra, purpose in EXTRAS.items():
        needed = requirements(extra)
        absent = [each.name for each in needed if not satisfied(each)]
        if absent:
            detail = f"for {purpose}: without {', '.join(absent)}"
            yield Finding(area, extra, detail, "note", pip_install(extra))
        else:
            yield Finding(area, extra, f"for {purpose}: complete")


def front_end() -> Iterable[Finding]:
    """Whether sliders will show: a kernel, and a browser side that speaks ipywidgets' version."""
    area = "notebooks"
    if find_spec("google") is not None and find_spec("google.colab") is not None:
        yield Finding(area, "front end", "Google Colab, which brings its own")
        return
    if version("ipykernel") is None:
        yield Finding(area, "kernel", "ipykernel is not installed, so no notebook runs", "missing", pip_install("lab"))
        return
    yield Finding(area, "kernel", f"ipykernel {version('ipykernel')}")
    if version("jupyterlab") is None:
        yield Finding(area, "JupyterLab", "not installed; VS Code needs none", "note", pip_install("lab"))
        return
    yield Finding(area, "JupyterLab", str(version("jupyterlab")))
    yield widget_front_end(area)


def widget_front_end(area: str) -> Finding:
    """ipywidgets names the version of its browser side that it needs; it must be installed, and where Lab looks."""
    name = "jupyterlab_widgets"
    needed = next((each for each in installed_requirements("ipywidgets") if each.name == name), Requirement(name))
    installed, remedy = version(name), "python -m pip install --upgrade ipywidgets jupyterlab_widgets"
    if installed is None or not needed.specifier.contains(installed, prereleases=True):
        detail = f"ipywidgets {version('ipywidgets')} needs {needed}; found {installed or 'none'}"
        return Finding(area, "widgets", detail, "missing", remedy)
    if not any(WIDGET_MANAGER in str(file) for file in metadata.files(name) or ()):
        return Finding(area, "widgets", f"{name} {installed} lacks its JupyterLab extension", "missing", remedy)
    return Finding(area, "widgets", f"ipywidgets {version('ipywidgets')}, {name} {installed}: they match")


def models() -> Iterable[Finding]:
    area = "models"
    if find_spec("torch") is None:
        return
    from labsupport.lm.load import model_status

    for model in model_status():
        name, here = model["name"], f"{model['megabytes']:g} MB; {model['source']}"
        if model["present"]:
            yield Finding(area, name, here)
        elif name == "tiny":
            yield Finding(area, name, "its weights are not in the package", "missing", "make train")
        else:
            how = f"python -c \"from labsupport.lm import load_lm; load_lm('{name}')\""
            yield Finding(area, name, "not cached; fetched when first used", "note", how)


def browser() -> Iterable[Finding]:
    path = find_chromium()
    area = "tests in a browser"
    if path:
        yield Finding(area, "Chromium", path)
    else:
        how = "apt-get install chromium" if shutil.which("apt-get") else "install Chromium or Google Chrome"
        yield Finding(area, "Chromium", "not found; only `make test` needs it", "note", how)


def find_chromium() -> str | None:
    """Path of Chromium or Chrome, None if there is none."""
    on_path = (shutil.which(name) for name in CHROMIUM_NAMES)
    apps = (path for path in CHROMIUM_APPS if os.access(path, os.X_OK))
    return next((path for path in (*on_path, *apps) if path), None)


def requirements(extra: str | None) -> list[Requirement]:
    """What pyproject.toml asks for: the core (None), or one extra, for this Python and system."""
    declared = [Requirement(text) for text in declared_requirements(extra)]
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": extra or ""})]


def declared_requirements(extra: str | None) -> list[str]:
    """From pyproject.toml in a checkout (metadata of an editable installation may be old), else from the metadata."""
    pyproject = PACKAGE.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        if project["name"] == "labsupport":
            return project["optional-dependencies"][extra] if extra else project["dependencies"]
    all_of_them = metadata.requires("labsupport") or []
    return [text for text in all_of_them if ("extra ==" in text) == (extra is not None)]


def installed_requirements(name: str) -> list[Requirement]:
    """What an installed package asks for, leaving out its extras; [] if it is absent."""
    try:
        declared = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def satisfied(requirement: Requirement) -> bool:
    installed = version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def version(name: str) -> str | None:
    """The installed version, None if there is none. Asks the metadata: importing everything would take long."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pip_install(extra: str | None = None) -> str:
    """The command that gets the core or an extra, in a checkout or from the course's address."""
    suffix = f"[{extra}]" if extra else ""
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return f'python -m pip install -c constraints.txt -e ".{suffix}"'
    return f'python -m pip install "labsupport{suffix} @ git+{COURSE_URL}"'


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
