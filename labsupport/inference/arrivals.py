"""Workloads for the simulator: when requests arrive, and how long their prompts and outputs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SimRequest:
    """Raises ValueError if a number is out of range."""

    arrival: float  # seconds
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.arrival < float("inf"):
            raise ValueError(f"arrival must be a finite number of seconds, at least 0, got {self.arrival}")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def requests_at_once(output_tokens: Iterable[int], prompt_tokens: int = 1) -> list[SimRequest]:
    """One request for each length, all present from the start."""
    return [SimRequest(0.0, prompt_tokens, length) for length in output_tokens]


def poisson_requests(
    rate: float,
    num_requests: int,
    prompt_tokens: tuple[int, int] = (16, 256),
    output_tokens: tuple[int, int] = (8, 128),
    seed: int = 0,
) -> list[SimRequest]:
    """Poisson arrivals, ``rate`` a second on average; lengths are uniform between (smallest, largest).

    Raises:
        ValueError: a rate or number is not positive, or a range is empty.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate must be a positive, finite number of requests a second, got {rate}")
    if num_requests < 1:
        raise ValueError(f"num_requests must be at least 1, got {num_requests}")
    for name, (low, high) in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if not 1 <= low <= high:
            raise ValueError(f"{name} must be (smallest, largest) with 1 <= smallest <= largest, got {(low, high)}")
    generator = np.random.default_rng(seed)
    # standard_exponential, then divided: another rate stretches the same arrivals, so a slider changes nothing else
    arrivals = np.cumsum(generator.standard_exponential(num_requests)) / rate
    prompts = generator.integers(*prompt_tokens, size=num_requests, endpoint=True)
    outputs = generator.integers(*output_tokens, size=num_requests, endpoint=True)
    return [SimRequest(float(a), int(p), int(o)) for a, p, o in zip(arrivals, prompts, outputs, strict=True)]
