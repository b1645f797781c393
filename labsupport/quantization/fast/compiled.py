"""What the kernels compiled by Numba share: their arithmetic flags and their threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

WEIGHTS_A_THREAD = 2**20  # below this, waking a thread costs more than it saves


FAST_MATH = {"contract", "reassoc", "nsz"}  # sums in any order; NaN and infinity keep their meaning


def to_array(x: Tensor) -> np.ndarray:
    """float32, contiguous and without a gradient; a view where ``x`` is all of that already."""
    if x.requires_grad or x.dtype != torch.float32:
        x = x.detach().float()
    return x.contiguous().numpy()


def in_threads(kernel: Callable[..., None], arrays: tuple, end: int, num_weights: int) -> None:
    """kernel(*arrays, first, last) for 0 .. end, in as many threads as PyTorch would use.

    Plain threads rather than Numba's, which would compete with PyTorch's OpenMP threads for the same cores.
    """
    if num_weights < 2 * WEIGHTS_A_THREAD or (threads := torch.get_num_threads()) == 1:
        kernel(*arrays, 0, end)
        return
    threads = min(threads, num_weights // WEIGHTS_A_THREAD)
    edges = [end * i // threads for i in range(threads + 1)]
    futures = [_pool(threads).submit(kernel, *arrays, first, last) for first, last in pairwise(edges)]
    for future in futures:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="matmul")
