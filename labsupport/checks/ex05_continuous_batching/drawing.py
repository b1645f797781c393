"""Cases: a number of slots, and requests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def make_case(slots: int, requests: list[list[int]], extra: int = 2) -> dict[str, Any]:
    """A case with enough steps to serve one request at a time."""
    last = max((step for step, _, _ in requests), default=1)
    return {"slots": slots, "requests": requests, "steps": last - 1 + sum(n for _, _, n in requests) + extra}


def named(*cases: dict[str, Any]) -> dict[str, Any]:
    """Each case under a name from which it can be repeated by hand."""
    named = {}
    for case in cases:
        groups: dict[int, list[str]] = {}
        for step, request_id, num_tokens in case["requests"]:
            groups.setdefault(step, []).append(f"{request_id}: {num_tokens}")
        added = [
            "{" + ", ".join(group) + "}" + (f" added before step {step}" if step > 1 else "")
            for step, group in groups.items()
        ]
        named[f"{case['slots']} slot{'s' * (case['slots'] > 1)} and requests {', '.join(added) or '{}'}"] = case
    return named


def at_once(ids: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    return [[1, request_id, length] for request_id, length in zip(ids, lengths, strict=True)]


def draw_ids(draw: random.Random, count: int) -> list[int]:
    """Different ids, neither ascending nor descending, 0 among them."""
    ids = [*draw.sample(range(10, 100), count - 1), 0]
    draw.shuffle(ids)
    return ids if count < 3 or ids not in (sorted(ids), sorted(ids, reverse=True)) else [ids[1], ids[0], *ids[2:]]
