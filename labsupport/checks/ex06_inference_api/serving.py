"""The student's app between the engine and the clients of a check."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from labsupport.checks.channel import Channel
from labsupport.checks.check import Answer
from labsupport.checks.hosting import serve
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Visit
from labsupport.checks.visited import VisitedCheck

APP = "create_app"
COMPLETIONS = "/v1/completions"


class ApiCheck(VisitedCheck):
    """A check whose inputs hold "answers", the engine's continuation of each prompt."""

    needs = (APP,)
    max_num_seqs = 8  # requests that the engine computes at a time
    first_tokens = 1  # of each request in its first step

    def host(self, answer: Answer, channel: Channel) -> None:
        serve(answer[APP], channel)

    def visit(self, channel: Channel, inputs: Mapping[str, Any]) -> Plain:
        visit = Visit(channel, inputs["answers"], self.max_num_seqs, self.first_tokens)
        try:
            if visit.start():
                self.meet(visit, inputs, visit.outcome)
        finally:
            visit.stop()
        return visit.outcome

    @abstractmethod
    def meet(self, visit: Visit, inputs: Mapping[str, Any], outcome: dict[str, Plain]) -> None:
        """Speak to an app that has started; what came of it is noted in ``outcome``."""
