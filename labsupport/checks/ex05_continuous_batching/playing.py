"""Serve a case with the student's scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.plain import Plain, call

SCHEDULER = "ContinuousBatchingScheduler"


class SchedulerCheck(Check):
    needs = (SCHEDULER,)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: play(answer[SCHEDULER], each) for case, each in inputs.items()}


def play(make: Callable[..., Any], case: Mapping[str, Any], clear: bool = False, ask: bool = False) -> dict[str, Plain]:
    """Serve a case. ``clear`` empties the lists that come back, ``ask`` reads has_unfinished after every call."""
    made, scheduler = call(make, case["slots"])
    adds: list[Plain] = []
    steps: list[Plain] = []
    asked: list[Plain] = []
    lists: list[Any] = []
    outcome = {"made": made, "adds": adds, "steps": steps, "asked": asked, "later": []}

    def look(when: str) -> None:
        if ask:
            asked.append([when, call(lambda: _truth(scheduler.has_unfinished))[0]])

    if "raised" in made:
        return outcome
    look("before the first add()")
    requests = list(case["requests"])
    for number in range(1, case["steps"] + 1):
        while requests and requests[0][0] == number:
            _, request_id, num_tokens = requests.pop(0)
            adds.append(call(lambda i=request_id, n=num_tokens: scheduler.add(i, n))[0])
            if "raised" in adds[-1]:
                return outcome
            look(f"after add({request_id}, {num_tokens})")
        stepped, ids = call(lambda: scheduler.step())
        steps.append(stepped)
        if "raised" in stepped:
            return outcome
        look(f"after step {number}")
        lists.append(ids)
        if clear and type(ids) is list:
            ids.clear()
    outcome["later"] = call(lambda: lists)[0]["returned"]
    return outcome


def _truth(value: Any) -> Plain:
    return "a method" if callable(value) else bool(value)
