"""The student's weights and biases are few, and many of them zero."""

from __future__ import annotations

from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import StudentCheck
from labsupport.checks.ex07_prune_and_distill.digits import draw_digits
from labsupport.checks.ex07_prune_and_distill.limits import MAX_NONZERO, MAX_PARAMETERS
from labsupport.checks.ex07_prune_and_distill.student_reading import read_student, require_small
from labsupport.checks.plain import Plain


class CheckStudentSize(StudentCheck):
    name = "check_student_size"
    points = 2
    holds = (
        f"the student has at most {MAX_PARAMETERS:,} weights and biases, of which at most {MAX_NONZERO} are not zero"
    )

    def inputs(self, seed: int) -> dict[str, Any]:
        case, _, _ = draw_digits(seed)
        return {"300 images": {**case, "images": case["images"][:300], "labels": case["labels"][:300]}}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in inputs:
            require_small(read_student(values[case], case))


check_student_size = CheckStudentSize()
