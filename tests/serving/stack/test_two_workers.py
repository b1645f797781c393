from __future__ import annotations

from labsupport.serving.stack.two_workers import two_workers


class List:
    """Whoever takes a request has it."""

    def __init__(self) -> None:
        self.waiting = list("1234")
        self.answers: list[tuple[str, str]] = []

    def take(self, worker: str, now: int) -> str | None:
        return self.waiting.pop(0) if self.waiting else None

    def finish(self, worker: str, request: str, now: int) -> None:
        self.answers.append((request, worker))


def test_two_workers_share_the_queue() -> None:
    assert two_workers(List()) == "1:A 2:B 3:A 4:B"


def test_what_a_killed_worker_held_is_never_answered() -> None:
    assert two_workers(List(), killed=1) == "2:B 3:B 4:B"


def test_a_paused_worker_goes_on_with_what_it_holds() -> None:
    assert two_workers(List(), paused=range(1, 8)) == "2:B 3:B 4:B 1:A"
    assert two_workers(List(), paused=range(1, 8), seconds=7) == "2:B 3:B 4:B"
