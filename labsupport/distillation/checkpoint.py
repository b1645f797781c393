"""The checkpoint of an interrupted training: its state, and the identity of the run that it belongs to."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labsupport.distillation.processes import from_rank_0
from labsupport.files import replacing

History = list[dict[str, float]]


def save_checkpoint(
    path: Path,
    identity: dict[str, Any],
    history: History,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Write the state of a run after ``len(history)`` steps; the file appears complete or not at all."""
    state = {
        "identity": identity, "history": history, "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }  # fmt: skip
    with replacing(path) as temporary:
        torch.save(state, temporary)


def resume(
    path: Path, identity: dict[str, Any], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], rank: int = 0
) -> History:
    """Load the state that ``path`` holds, if it exists, and return the history of that run so far.

    Rank 0 reads, and tells the others, which may not see its disk.

    Raises:
        ValueError: the checkpoint belongs to another run.
    """
    found = rank == 0 and path.is_file()
    state = from_rank_0(torch.load(path, map_location="cpu", weights_only=True) if found else None)
    if state is None:
        return []
    other = [name for name, value in identity.items() if state["identity"].get(name) != value]
    if other:
        name = other[0]
        raise ValueError(
            f"checkpoint {path.name} is of another run: {name} was {state['identity'].get(name)!r}, now it is "
            f"{identity[name]!r}. Give the same settings to continue it, or delete it to start afresh"
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["history"]


def fingerprint(tensors: Iterable[Tensor], values: int = 4096) -> int:
    """A checksum of each tensor's shape and of at most ``values`` of its values, evenly spread: cheap at any size."""
    result = 0
    for tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, -(-len(flat) // values))].double().cpu()
        result = zlib.crc32(some.numpy().tobytes(), zlib.crc32(str(tuple(tensor.shape)).encode(), result))
    return result
