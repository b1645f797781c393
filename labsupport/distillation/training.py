"""What any resumable training on one or several processes needs: batches that follow from (seed, step) alone, random
numbers that do too, a process group, inner features, and a way to tell two runs apart."""

from __future__ import annotations

import atexit
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn


def join_processes() -> tuple[int, int]:
    """(rank, number of processes). Joins the group that torchrun announces in the environment, if any."""
    if not dist.is_available():
        return 0, 1
    announced = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if not dist.is_initialized() and announced and int(os.environ["WORLD_SIZE"]) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batch_rows(num_rows: int, batch_size: int, seed: int, step: int) -> Int64[Tensor, " batch"]:
    """Rows of batch ``step``: epoch after epoch in new orders, batches running on from one epoch into the next."""
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


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate: linearly up, then linearly down to zero."""
    return min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """What the named modules put out while the model runs, in the order of ``names``; images as one vector each."""
    found: dict[str, Tensor] = {}
    ordered: list[Tensor] = []

    def remember(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            found[name] = output.flatten(1) if output.dim() == 4 else output

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [remember(name) for name in dict.fromkeys(names)]
    try:
        yield ordered
        ordered.extend(found[name] for name in names)
    finally:
        for handle in handles:
            handle.remove()


def fingerprint(tensors: Iterable[Tensor], values: int = 4096) -> int:
    """A checksum of shapes and of at most ``values`` evenly spread values each: cheap for models of any size."""
    result = 0
    for tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, -(-len(flat) // values))].double().cpu()
        result = zlib.crc32(some.numpy().tobytes(), zlib.crc32(str(tuple(tensor.shape)).encode(), result))
    return result


@contextmanager
def seeded(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Random numbers (dropout's) follow from these alone; the global generators are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        number = (seed * 1_000_003 + step) * 1_009 + rank
        torch.default_generator.manual_seed(number)  # torch.manual_seed does more, and takes as long as a small network
        if devices:
            torch.cuda.manual_seed(number)
        yield


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, but the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
