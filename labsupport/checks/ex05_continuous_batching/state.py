"""Schedulers share nothing with each other, nor with the lists they returned."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.oracles import right_schedule
from labsupport.checks.ex05_continuous_batching.playing import SCHEDULER, SchedulerCheck, play
from labsupport.checks.ex05_continuous_batching.reading import Steps, read_steps
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain, call


class CheckState(SchedulerCheck):
    name = "check_state"
    points = 2
    holds = "schedulers share nothing with each other, nor with the lists they returned"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        ids = draw_ids(draw, 5)
        cases = [
            make_case(2, at_once(ids, [3, *draw.sample(range(1, 6), 4)])),
            make_case(3, at_once(ids, [4, 1, 2, 3, 2])),
        ]
        return named(*cases)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        alone = {case: play(answer[SCHEDULER], each) for case, each in inputs.items()}
        cleared = {case: play(answer[SCHEDULER], each, clear=True) for case, each in inputs.items()}
        ids = [request_id for _, request_id, _ in next(iter(inputs.values()))["requests"]]
        others: list[Any] = []

        def disturbed(slots: int) -> Any:
            """A scheduler made between two others, which have other slots and unfinished requests of the same ids"""
            before = answer[SCHEDULER](slots + 5)
            before.add(ids[0], 9)
            before.step()  # its request runs, those of the other wait
            scheduler = answer[SCHEDULER](slots)
            after = answer[SCHEDULER](slots + 9)
            for request_id in ids:
                after.add(request_id, 9)
            others.extend((before, after))
            return scheduler

        together = {case: play(disturbed, each) for case, each in inputs.items()}
        for other in others * 20:  # whatever they share is left empty, so that it cannot affect the next check
            call(lambda other=other: other.step())
        return {"alone": alone, "cleared": cleared, "together": together}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            self._same(case, each, read_steps(case, each, values["alone"][case]), "a fresh scheduler is not empty")
            alone = values["alone"][case]
            for number, later in enumerate(alone["later"], start=1):
                now = alone["steps"][number - 1].get("returned")
                if later != now:
                    raise Wrong(
                        f"for {case}, step {number} returned {now}, but that list became {later} with later steps: "
                        "return a new list each time"
                    )
            self._same(
                case,
                each,
                read_steps(case, each, values["cleared"][case]),
                "the caller emptied the lists it got, which emptied the scheduler too; return a new list each time",
            )
            self._same(
                case,
                each,
                read_steps(case, each, values["together"][case]),
                "other schedulers exist, with requests of their own; what a scheduler holds must be created in "
                "__init__ and set on self, not on the class, in a global or in a default argument",
            )

    def _same(self, case: str, inputs: Mapping[str, Any], steps: Steps, cause: str) -> None:
        for number, (ids, wanted) in enumerate(zip(steps, right_schedule(inputs), strict=False), start=1):
            if ids != wanted:
                raise Wrong(f"for {case}, step {number} returned {ids}, not {wanted}: {cause}")


check_state = CheckState()
