"""Two workers that take requests from a queue in memory, second by second: what a dead or a sleeping one does to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol


class TakesAndFinishes(Protocol):
    """A queue: ``answers`` holds (request, worker) in the order in which answers were accepted."""

    answers: list[tuple[Any, str]]

    def take(self, worker: str, now: int) -> Hashable | None: ...

    def finish(self, worker: str, request: Any, now: int) -> None: ...


def two_workers(
    queue: TakesAndFinishes, seconds: int = 14, killed: int | None = None, paused: Sequence[int] = range(0)
) -> str:
    """Workers A and B, each answer takes two seconds. Returns the answers, as "1:A 2:B ...".

    killed: the second in which A dies. paused: the seconds in which A stands still, and after which it goes on.
    """
    busy: dict[str, tuple[Any, int]] = {}
    for now in range(seconds):
        for worker in "AB":
            if worker == "A" and ((killed is not None and now >= killed) or now in paused):
                continue
            if worker in busy and now >= busy[worker][1]:
                queue.finish(worker, busy.pop(worker)[0], now)
            if worker not in busy and (request := queue.take(worker, now)) is not None:
                busy[worker] = request, now + 2
    return " ".join(f"{request}:{worker}" for request, worker in queue.answers)
