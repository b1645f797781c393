"""Batches and random numbers that follow from (seed, step) alone, so that a resumed training repeats nothing and skips
nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor


def batch_rows(num_rows: int, batch_size: int, seed: int, step: int) -> Int64[Tensor, " batch"]:
    """Rows of batch ``step``: each epoch in a new order, batches continuing from one epoch into the next."""
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    while start < stop:
        epoch, row = divmod(start, num_rows)
        parts.append(epoch_order(num_rows, seed, epoch)[row : row + stop - start])
        start += len(parts[-1])
    return torch.cat(parts)


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Int64[Tensor, " rows"]:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


@contextmanager
def seeded(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Random numbers (dropout) follow from these arguments alone; afterwards the global generators are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        number = (seed * 1_000_003 + step) * 1_009 + rank
        torch.default_generator.manual_seed(
            number
        )  # torch.manual_seed does more, and takes as long as a small network's pass
        if devices:
            torch.cuda.manual_seed(number)
        yield
