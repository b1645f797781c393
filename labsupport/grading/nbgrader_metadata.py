"""nbgrader's cell metadata, so that a course that runs on nbgrader can use the notebooks as they are.

nbgrader reads `metadata.nbgrader` of a cell (schema version 3, https://nbgrader.readthedocs.io): students fill in a
`solution` cell; a `grade` cell earns its points if it raises nothing, and is restored before it is run. Answer cells
are of the first kind, check cells of the second; both keep their cell id as `grade_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 3


def annotate(notebook: Any, points: Mapping[str, int]) -> bool:
    """Give the answer and check cells of ``notebook`` nbgrader's metadata, in place; return whether anything changed.

    Args:
        points: id of a check cell -> its points.

    Raises:
        ValueError: a check cell has no points, or points are given for a cell that is not a check cell.
    """
    checks = {cell.id for cell in notebook.cells if "check" in cell.metadata.get("tags", [])}
    if checks != points.keys():
        raise ValueError(f"points must be for the check cells {sorted(checks)}, got {sorted(points)}")
    changed = False
    for cell in notebook.cells:
        wanted = _metadata(cell, points)
        if cell.metadata.get("nbgrader") != wanted:
            changed = True
            if wanted is None:
                del cell.metadata["nbgrader"]
            else:
                cell.metadata["nbgrader"] = wanted
    return changed


def check_points(exercise_name: str) -> dict[str, int] | None:
    """Id of a check cell -> points of its check; None for a notebook without checks in `labsupport.checks`."""
    from labsupport.checks import exercise, exercises  # imports torch: `labsupport --help` must not wait for it

    if exercise_name not in exercises():
        return None
    return {check.name.replace("_", "-"): check.points for check in exercise(exercise_name).checks}


def _metadata(cell: Any, points: Mapping[str, int]) -> dict[str, Any] | None:
    tags = cell.metadata.get("tags", [])
    common = {"grade_id": cell.id, "schema_version": SCHEMA_VERSION, "task": False}
    if "answer" in tags:
        return {**common, "grade": False, "locked": False, "solution": True}
    if "check" in tags:
        return {**common, "grade": True, "locked": True, "solution": False, "points": points[cell.id]}
    return None
