"""Text that comes with every Python: for calibration, for training `tiny`, and, kept apart, for evaluation."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

CALIBRATION_SHARE = 0.6
OVERLAP = 50  # consecutive characters that count as a quotation


def corpus(part: Literal["calibration", "evaluation"]) -> str:
    """Python's language reference (``pydoc_data.topics``), topics in sorted order: first 60 % or last 40 %.

    Raises:
        ValueError: ``part`` is neither of the two.
    """
    if part not in ("calibration", "evaluation"):
        raise ValueError(f'part must be "calibration" or "evaluation"; got {part!r}')
    text = _topics()
    cut = int(len(text) * CALIBRATION_SHARE)
    return text[:cut] if part == "calibration" else text[cut:]


@cache
def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def training_documents() -> list[str]:
    """What `tiny` learns from: the calibration text and the standard library's docstrings, without any paragraph that
    shares 50 consecutive characters with the evaluation text (topics quote each other, and docstrings quote them)."""
    held_out = _windows(corpus("evaluation"))
    documents = [corpus("calibration"), *standard_library_docstrings()]
    kept = ("\n\n".join(_unseen(document.split("\n\n"), held_out)) for document in documents)
    return [document for document in kept if len(document) > OVERLAP]


def _unseen(paragraphs: Iterable[str], held_out: set[str]) -> Iterator[str]:
    return (paragraph for paragraph in paragraphs if held_out.isdisjoint(_windows(paragraph)))


def _windows(text: str) -> set[str]:
    flat = " ".join(text.split())
    return {flat[start : start + OVERLAP] for start in range(len(flat) - OVERLAP + 1)}


def standard_library_docstrings() -> list[str]:
    """One document for each module, in sorted order. Files are parsed, never imported."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith("pydoc_data"))
    files = [
        path
        for name in names
        for path in ([root / f"{name}.py"] if (root / f"{name}.py").is_file() else sorted((root / name).rglob("*.py")))
        if not {"test", "tests", "idle_test", "site-packages"} & set(path.relative_to(root).parts)
    ]
    return [text for path in files if (text := "\n\n".join(_docstrings(path)))]


def _docstrings(path: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # lib2to3 keeps such files on purpose
            return
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text
