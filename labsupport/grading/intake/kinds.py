"""What kind of file this is, judged by its name and its first bytes."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

NOISE_FOLDERS = {".ipynb_checkpoints", "__MACOSX", ".git", "__pycache__"}
_NOISE_FILES = {".ds_store", "thumbs.db", "desktop.ini", "timestamp.txt", "submission_metadata.yml", ".gitkeep"}
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_ARCHIVES = (".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz", ".lzma", ".cab", ".dmg", ".iso", ".zipx", ".z")
_CODE = (".py", ".pyc", ".pynb", ".rmd", ".qmd", ".jl", ".r")


def noise(path: PurePosixPath) -> str:
    """Why nobody means this file to be looked at; empty if somebody may."""
    for part in path.parts[:-1]:
        if part in NOISE_FOLDERS:
            return f"lies in {part}, which a program keeps for itself"
    name = path.name.casefold()
    if name in _NOISE_FILES:
        return "is a program's own file, not a student's"
    return "is what macOS keeps beside a file (AppleDouble)" if name.startswith("._") else ""


def archive_kind(name: str) -> str:
    """ "zip" or "tar" for what can be read as such by its name; else empty."""
    name = name.casefold()
    if name.endswith(".zip"):
        return "zip"
    tars = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
    return "tar" if name.endswith(tars) else ""


def is_notebook_name(name: str) -> bool:
    return name.casefold().endswith(".ipynb")


def is_renamed_notebook(data: bytes) -> bool:
    """Whether a file with another name holds a notebook: "ex01.ipynb.txt", "ex01.json"."""
    try:
        text = data.decode("utf-8-sig")
        notebook = json.loads(text) if text.lstrip().startswith("{") and '"cells"' in text else None
    except (ValueError, RecursionError):
        return False
    return isinstance(notebook, dict) and isinstance(notebook.get("cells"), list) and "nbformat" in notebook


def is_apple_double(data: bytes) -> bool:
    return data.startswith(_APPLE_DOUBLE)


def why_not_read(name: str) -> str:
    """Why a file that may hold an answer cannot be taken; empty if it hardly holds one."""
    name = name.casefold()
    if name.endswith(_ARCHIVES):
        return f"is an archive of a kind that is not opened ({PurePosixPath(name).suffix}): unpack it by hand"
    if name.endswith(_CODE):
        return "is a program, not a notebook: the student must hand in the .ipynb"
    return ""
