"""The requests of a load test: drawn from distributions, or read from a trace."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Planned:
    """A request, due ``at`` seconds from the start; None: as soon as a client is free (closed loop)."""

    prompt: str
    max_tokens: int
    at: float | None = None


def plan_requests(
    count: int,
    rate: float | None = None,
    prompt_chars: str = "uniform:32:256",
    output_tokens: str = "uniform:8:64",
    seed: int = 0,
    text: str | None = None,
) -> list[Planned]:
    """``count`` requests; with a ``rate``, their times are a Poisson process of that many per second.

    Lengths: ``"64"``, ``"uniform:LOW:HIGH"`` or ``"lognormal:MEDIAN:SIGMA"``. Prompts are pieces of ``text``
    (None: the course's evaluation text).

    Raises:
        ValueError: a length or the rate has another form.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0; got {rate}")
    if text is None:
        from labsupport.lm.text import corpus

        text = corpus("evaluation")
    draw = random.Random(seed)
    plan, at = [], 0.0
    for _ in range(count):
        length = min(draw_length("prompt_chars", prompt_chars, draw), len(text))
        start = draw.randrange(len(text) - length + 1)
        max_tokens = draw_length("output_tokens", output_tokens, draw)
        plan.append(Planned(text[start : start + length], max_tokens, None if rate is None else at))
        at += draw.expovariate(rate or 1)
    return plan


def draw_length(name: str, kind: str, draw: random.Random) -> int:
    try:
        match kind.split(":"):
            case [fixed]:
                length = int(fixed)
            case ["uniform", low, high] if int(low) <= int(high):
                length = draw.randint(int(low), int(high))
            case ["lognormal", median, sigma]:
                length = max(1, round(float(median) * math.exp(draw.gauss(0, float(sigma)))))
            case _:
                raise ValueError
        if length < 1:
            raise ValueError
    except (ValueError, OverflowError):
        allowed = "a number of 1 or more, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"
        raise ValueError(f"{name} must be {allowed}; got {kind!r}") from None
    return length


def read_trace(path: Path) -> list[Planned]:
    """Lines of JSON: ``{"at": seconds, "prompt": text, "max_tokens": number}``.

    Raises:
        ValueError: a line has another form.
    """
    plan = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            planned = Planned(str(row["prompt"]), int(row["max_tokens"]), float(row["at"]))
            if not (0 <= planned.at < math.inf and planned.max_tokens >= 1):  # type: ignore[operator]
                raise ValueError
        except (ValueError, KeyError, TypeError):
            wanted = '{"at": seconds, "prompt": text, "max_tokens": number}'
            raise ValueError(f"{path.name} line {number} must be {wanted}; got {line[:80]!r}") from None
        plan.append(planned)
    return sorted(plan, key=lambda each: each.at or 0.0)
