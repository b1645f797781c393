"""Looking over the scheduler's shoulder: every plan that it makes."""

from __future__ import annotations

from labsupport.inference.engine import LLMEngine
from labsupport.inference.scheduler import Plan


def watch_plans(engine: LLMEngine) -> list[Plan]:
    """A list to which each `Plan` that the engine's scheduler makes from now on is added."""
    schedule = engine.scheduler.schedule
    plans: list[Plan] = []

    def watched() -> Plan:
        plans.append(schedule())
        return plans[-1]

    engine.scheduler.schedule = watched  # type: ignore[method-assign]
    return plans
