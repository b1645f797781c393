"""The results of a simulation: when each request got its tokens, what each slot did, and measures of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from labsupport.inference.arrivals import SimRequest


class Phase(IntEnum):
    """What a slot does in a step."""

    EMPTY = 0
    PREFILL = 1  # a prompt, or a piece of one; with its last piece comes the first token
    DECODE = 2
    DONE = 3  # static batching: the answer is complete, the slot waits for the rest of its batch


@dataclass
class RequestResult:
    """What became of a request, in seconds: times since the start of the simulation, and durations."""

    request: SimRequest
    admitted: float = float("nan")
    token_times: list[float] = field(default_factory=list)  # when each token was computed
    completed: float = float("nan")  # when the slot is free again; static batching answers when its batch is done

    @property
    def ttft(self) -> float:
        """Time to first token. Static batching gets credit for tokens that are computed but not sent yet."""
        return self.token_times[0] - self.request.arrival

    @property
    def inter_token(self) -> np.ndarray:
        """Gaps between tokens, one fewer than there are tokens."""
        return np.diff(self.token_times)

    @property
    def latency(self) -> float:
        """From arrival to completion."""
        return self.completed - self.request.arrival


@dataclass(frozen=True)
class Step:
    """One pass through the model."""

    start: float
    seconds: float
    prefill_tokens: int  # with padding, as is what follows
    decode_rows: int
    slots: tuple[tuple[int, Phase], ...]  # of each slot: index of its request (-1 if empty), and its phase

    @property
    def live(self) -> int:
        """Slots that do useful work."""
        return sum(phase in (Phase.PREFILL, Phase.DECODE) for _, phase in self.slots)


@dataclass(frozen=True)
class Simulation:
    """The outcome: `results` in the order in which the requests were given, `steps` in order of time."""

    policy: str
    max_num_seqs: int
    results: list[RequestResult]
    steps: list[Step]

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def makespan(self) -> float:
        """Seconds from the first arrival to the last completion."""
        first = min(result.request.arrival for result in self.results)
        return max(result.completed for result in self.results) - first

    @property
    def throughput(self) -> float:
        """Output tokens a second."""
        return sum(result.request.output_tokens for result in self.results) / self.makespan

    @property
    def utilization(self) -> float:
        """Share of slots that do useful work, averaged over the makespan."""
        busy = sum(step.seconds * step.live for step in self.steps)
        return busy / (self.max_num_seqs * self.makespan)

    @property
    def longest_gap(self) -> float:
        """The longest wait between two tokens of a request, 0 if no request has two."""
        return max((float(r.inter_token.max()) for r in self.results if len(r.token_times) > 1), default=0.0)

    def timeline(self) -> tuple[np.ndarray, np.ndarray]:
        """Two integer arrays [slot, step]: index of the request (-1: none), and `Phase`."""
        cells = np.array([step.slots for step in self.steps], dtype=np.int64)  # [step, slot, 2]
        return cells[:, :, 0].T, cells[:, :, 1].T

    def summary(self) -> dict[str, Any]:
        """A row of a table. It states the workload, without which the other numbers mean nothing."""
        ttft = [result.ttft for result in self.results]
        return {
            "policy": self.policy,
            "slots": self.max_num_seqs,
            "requests": len(self.results),
            "output_tokens": sum(result.request.output_tokens for result in self.results),
            "steps": self.num_steps,
            "seconds": self.makespan,
            "tokens_per_second": self.throughput,
            "utilization": self.utilization,
            "mean_ttft": float(np.mean(ttft)),
            "p99_ttft": float(np.percentile(ttft, 99)),
            "mean_latency": float(np.mean([result.latency for result in self.results])),
            "longest_gap": self.longest_gap,
        }
