"""Several processes that train one model: their ranks, and what they exchange besides gradients."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
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


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """The sum of what every process passes, on the CPU. ``device``: where the processes exchange it."""
    if _several():
        values = values.to(device)
        dist.all_reduce(values)
    return values.cpu()


def share_buffers(module: nn.Module) -> None:
    """Each process has its own running statistics of batch norm: all take those of rank 0."""
    for buffer in module.buffers() if _several() else ():
        dist.broadcast(buffer, src=0)


def from_rank_0(value: Any) -> Any:
    """What rank 0 passes; the others may pass anything."""
    values = [value]
    if _several():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
