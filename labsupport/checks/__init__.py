"""Checks of the exercises: what a right answer must satisfy, and what to say of a wrong one.

In a notebook a check is one line. It prints what holds, or raises `CheckFailed` with one line that says why it fails::

    from labsupport.checks import ex01
    ex01.check_scale(quantize_int8)

Every check has three parts, so that a wall can stand between the student's code and the verdict:

    inputs(seed)             trusted     draws what the student's functions will be called with
    run(answer, inputs)      untrusted   calls them, and returns plain values only (`labsupport.checks.plain`)
    judge(inputs, values)    trusted     raises `Wrong` with the reason, from those plain values alone

A notebook does all three in its kernel. A grader draws the inputs itself, lets `run` happen in a sandbox, and judges
what comes back: no reference answer and no held-out data enters the sandbox (inputs named `_like_this` stay outside),
and no object of the student's leaves it.

Each exercise is a folder, one check a file. What its checks share is in files beside them, of which `drawing` (inputs),
`reading` (what came back, or `Wrong`) and `oracles` (reference answers) stay outside the sandbox.
"""

from typing import TYPE_CHECKING

from labsupport.checks.lookup import by_name, exercise, exercises

if TYPE_CHECKING:
    from labsupport.checks.check import PUBLIC_SEED, Check, CheckFailed, Exercise, NotAttempted, Verdict
    from labsupport.checks.judging import Wrong

__getattr__ = by_name  # imports what is asked for; `ex01` is short for `ex01_int8_symmetric`

__all__ = [
    "PUBLIC_SEED",
    "Check",
    "CheckFailed",
    "Exercise",
    "NotAttempted",
    "Verdict",
    "Wrong",
    "exercise",
    "exercises",
]
