"""A fixed series of events on a real paged cache, and the state of its blocks after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from labsupport.kvcache.paged import PagedKVCache


@dataclass(frozen=True)
class Snapshot:
    """What the block pool holds after one event; blocks by number, owners by name."""

    event: str
    owners: dict[int, list[str]]
    filled: dict[int, int]
    cached: int
    used: int
    reserved: int
    tables: dict[str, tuple[int, ...]]
    contiguous: dict[str, int]
    waiting: list[str]


def block_history(num_blocks: int, block_size: int, max_length: int) -> list[Snapshot]:
    """Run a fixed series of events on a real cache of one layer and one head, and record the state after each."""
    pool = PagedKVCache(1, num_blocks, block_size, 1, 2)
    rooms = num_blocks * block_size // max_length
    generator = torch.Generator().manual_seed(0)
    history: list[Snapshot] = []
    lengths: dict[str, int] = {}  # what a contiguous cache would hold
    waiting: list[str] = []

    def write(name: str, tokens: list[int]) -> None:
        zeros = torch.zeros(1, 1, len(tokens), 2)
        pool.append(name, zeros, zeros, tokens)
        if name in lengths:
            lengths[name] += len(tokens)

    def add(name: str, tokens: list[int]) -> str:
        found = pool.add_sequence(name, tokens)
        if len(lengths) < rooms:
            lengths[name] = found
        else:
            waiting.append(name)
        write(name, tokens[found:])
        return f"{name} arrives with {len(tokens)} tokens" + (
            f", {found} of them found in the cache." if found else "."
        )

    def fork(parent: str, child: str) -> str:
        pool.fork(parent, child)
        if len(lengths) < rooms:
            lengths[child] = lengths.get(parent, 0)
        else:
            waiting.append(child)
        return f"{child} forks from {parent}: same blocks, counted twice."

    def step() -> str:
        copies = {name: pool.block_table(name) for name in pool.sequences}
        for name in list(pool.sequences):
            write(str(name), torch.randint(1000, (1,), generator=generator).tolist())
        copied = [
            str(name)
            for name, old in copies.items()
            if any(a != b for a, b in zip(old, pool.block_table(name), strict=False))
        ]
        return "Every sequence gets a token." + (f" {copied[0]} copied a shared block first." if copied else "")

    def free(name: str) -> str:
        pool.free(name)
        lengths.pop(name, None)
        if name in waiting:
            waiting.remove(name)
        return f"{name} is done: its blocks go back."

    prompt = list(range(100, 111))
    events: list[Callable[[], str]] = [
        lambda: "Nothing yet.",
        lambda: add("A", prompt),
        lambda: add("B", list(range(200, 205))),
        step,
        step,
        lambda: fork("A", "C"),
        step,
        step,
        lambda: add("D", list(range(300, 309))),
        step,
        lambda: free("B"),
        lambda: add("E", [*prompt[:8], 7, 7]),
        step,
        step,
        lambda: add("F", list(range(400, 403))),
        step,
        lambda: free("A"),
        step,
        lambda: free("C"),
        lambda: add("G", [*prompt, 9]),
        step,
        lambda: free("D"),
    ]
    for happen in events:
        event = happen()
        pool.check_integrity()
        tables = {str(name): pool.block_table(name) for name in pool.sequences}
        owners: dict[int, list[str]] = {}
        filled: dict[int, int] = {}
        for name, table in tables.items():
            for index, block in enumerate(table):
                owners.setdefault(block, []).append(name)
                tokens = min(block_size, pool.length(name) - index * block_size)
                filled[block] = max(filled.get(block, 0), tokens)
        usage = pool.usage()
        history.append(
            Snapshot(
                event,
                owners,
                filled,
                usage["cached_blocks"],
                usage["used_slots"],
                usage["reserved_slots"],
                tables,
                dict(lengths),
                list(waiting),
            )
        )
    return history
