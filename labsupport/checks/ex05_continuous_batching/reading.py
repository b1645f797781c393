"""What the student's scheduler returned, or `Wrong`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labsupport.checks.ex05_continuous_batching.playing import SCHEDULER
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import describe

Steps = list[list[int]]  # the ids that each step returned


def read_steps(case: str, inputs: Mapping[str, Any], outcome: Mapping[str, Any], idle: bool = False) -> Steps:
    """The lists that came back, or `Wrong`. Unless ``idle``, errors are ignored once all requests are served."""
    returned(outcome["made"], f"{SCHEDULER}({inputs['slots']})")
    for (_, request_id, num_tokens), added in zip(inputs["requests"], outcome["adds"], strict=False):
        returned(added, f"{case}, add({request_id}, {num_tokens})")
    left = {request_id: num_tokens for _, request_id, num_tokens in inputs["requests"]}
    found: Steps = []
    for number, outcome_of_step in enumerate(outcome["steps"], start=1):
        over = all(count <= 0 for count in left.values())
        served = all(left[i] <= 0 for step, i, _ in inputs["requests"] if step <= number)
        nothing = not isinstance(outcome_of_step.get("returned"), list)
        if over and nothing and not idle:
            return found
        hint = "when no request is left, step() returns []" if served else ""
        ids = returned(outcome_of_step, f"{case}, step {number}", hint)
        if nothing:
            raise Wrong(
                f"for {case}, step {number}: step() must return a list of ids; it returned {describe(ids)}"
                f"{hint and '; '}{hint}"
            )
        for request_id in ids:
            if type(request_id) is not int:
                raise Wrong(
                    f"for {case}, step {number}: step() must return a list of ids, as given to add(); the list holds "
                    f"{describe(request_id)}"
                )
            if request_id not in left:
                raise Wrong(f"for {case}, step {number} returned {ids}: no request has the id {request_id}")
            left[request_id] -= 1
        found.append(ids)
    if len(found) != inputs["steps"]:
        raise ValueError(f"{len(found)} steps for {case}")  # no run of `play` leads here
    return found


def unfinished_at(inputs: Mapping[str, Any], steps: Steps, number: int) -> list[int]:
    """Ids of the requests added before step ``number`` that still lack a token then, in the order of their arrival."""
    return [
        request_id
        for step, request_id, num_tokens in inputs["requests"]
        if step <= number and sum(ids.count(request_id) for ids in steps[: number - 1]) < num_tokens
    ]
