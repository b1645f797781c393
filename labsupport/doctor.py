"""`labsupport doctor`: what is installed, which device, which models are cached, what is missing and how to get it.

Every examination is a function that returns findings. One that fails becomes a finding itself: a doctor that crashes
on a broken installation is useless.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from packaging.requirements import Requirement

from labsupport import COURSE_URL, __version__, requirements
from labsupport.chromium import find_chromium

State = Literal["ok", "note", "missing"]  # note: something optional is absent; missing: a chapter cannot run

CHAPTERS = 4  # of the notebooks that exist (a chapter may have two halves); a test counts them
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
    """The findings as plain text, one paragraph per area."""
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
    """The chapters of this version: "chapter 1", "chapters 1 to 3"."""
    return "chapter 1" if CHAPTERS == 1 else f"chapters 1 to {CHAPTERS}"


def machine() -> Iterable[Finding]:
    area = "this machine"
    yield Finding(area, "labsupport", f"{__version__} in {requirements.PACKAGE}")
    yield Finding(area, "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding(area, "system", f"{platform.system()} {platform.release()}, {platform.machine()}")

    import psutil

    memory = psutil.virtual_memory()
    detail, enough = f"{gib(memory.available)} of {gib(memory.total)} available", memory.available >= 2 * 2**30
    yield _enough(area, "memory", detail, enough, "close other programs: SmolLM2 needs 2 GiB, `tiny` much less")
    free = shutil.disk_usage(requirements.PACKAGE).free
    remedy = "free some space: an installation takes 2 GiB, SmolLM2 another 0.6 GiB"
    yield _enough(area, "disk", f"{gib(free)} free", free >= 3 * 2**30, remedy)


def _enough(area: str, name: str, detail: str, enough: bool, remedy: str) -> Finding:
    return Finding(area, name, detail) if enough else Finding(area, name, detail, "note", remedy)


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
    """The instructions that decide how fast integer matrix products are: "AVX2", "AVX512 with VNNI", ..."""
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
    for requirement in requirements.declared(extra=None):
        installed = requirements.version(requirement.name)
        if installed is None:
            unsatisfied.append(str(requirement))
            yield Finding(area, requirement.name, "not installed", "missing", requirements.pip_install())
        elif not requirement.specifier.contains(installed, prereleases=True):
            unsatisfied.append(str(requirement))
            needed = f"{installed}, but {requirement.specifier} is needed"
            yield Finding(area, requirement.name, needed, "missing", requirements.pip_install())
        else:
            yield Finding(area, requirement.name, installed)


def extras() -> Iterable[Finding]:
    area = "extras"
    for extra, purpose in EXTRAS.items():
        needed = requirements.declared(extra)
        absent = [each.name for each in needed if not requirements.satisfied(each)]
        if absent:
            detail = f"for {purpose}: without {', '.join(absent)}"
            yield Finding(area, extra, detail, "note", requirements.pip_install(extra))
        else:
            yield Finding(area, extra, f"for {purpose}: complete")


def front_end() -> Iterable[Finding]:
    """Whether sliders will show: that takes a kernel, and a front end that matches ipywidgets."""
    area = "notebooks"
    if find_spec("google") is not None and find_spec("google.colab") is not None:
        yield Finding(area, "front end", "Google Colab, which has its own")
        return
    if requirements.version("ipykernel") is None:
        yield Finding(
            area,
            "kernel",
            "ipykernel is not installed, so no notebook runs",
            "missing",
            requirements.pip_install("lab"),
        )
        return
    yield Finding(area, "kernel", f"ipykernel {requirements.version('ipykernel')}")
    if requirements.version("jupyterlab") is None:
        yield Finding(
            area, "JupyterLab", "not installed; VS Code works without", "note", requirements.pip_install("lab")
        )
        return
    yield Finding(area, "JupyterLab", str(requirements.version("jupyterlab")))
    yield widget_front_end(area)


def widget_front_end(area: str) -> Finding:
    """ipywidgets declares which version of its front end it needs; that must be installed where JupyterLab looks."""
    name = "jupyterlab_widgets"
    needed = next((each for each in requirements.of("ipywidgets") if each.name == name), Requirement(name))
    installed, remedy = requirements.version(name), "python -m pip install --upgrade ipywidgets jupyterlab_widgets"
    if installed is None or not needed.specifier.contains(installed, prereleases=True):
        detail = f"ipywidgets {requirements.version('ipywidgets')} needs {needed}; found {installed or 'none'}"
        return Finding(area, "widgets", detail, "missing", remedy)
    if not any(WIDGET_MANAGER in str(file) for file in metadata.files(name) or ()):
        return Finding(area, "widgets", f"{name} {installed} lacks its JupyterLab extension", "missing", remedy)
    return Finding(area, "widgets", f"ipywidgets {requirements.version('ipywidgets')}, {name} {installed}: they match")


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
        yield Finding(area, "Chromium", "not found; only the browser tests need it", "note", how)


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
