"""Moving the model to its device, and how many cache blocks fit into the memory beside its weights."""

from __future__ import annotations

import copy

import psutil
import torch

from labsupport.kvcache import kv_bytes_per_token
from labsupport.lm import Llama, LlamaConfig
from labsupport.lm.weights_file import as_dtype

_TOKENS_ON_CPU = (
    1024  # of each sequence: a CPU shares its memory with other programs, so the engine does not take all it could
)


def block_bytes(config: LlamaConfig, block_size: int, bytes_per_element: float = 2) -> int:
    """Bytes of one block: keys and values, in all layers."""
    return round(block_size * kv_bytes_per_token(config, bytes_per_element))


def blocks_that_fit(
    memory_bytes: int,
    weight_bytes: int,
    config: LlamaConfig,
    block_size: int,
    bytes_per_element: float = 2,
    reserved_bytes: int = 0,
) -> int:
    """Cache blocks in ``memory_bytes`` beside the weights and whatever else (activations) is reserved.

    Raises:
        ValueError: not even one fits.
    """
    free, each = memory_bytes - weight_bytes - reserved_bytes, block_bytes(config, block_size, bytes_per_element)
    if free < each:
        raise ValueError(
            f"memory must hold the weights and at least one block of {each:,} bytes; got {memory_bytes:,} bytes for "
            f"{weight_bytes:,} of weights and {reserved_bytes:,} reserved"
        )
    return free // each


def bytes_per_cached_element(model: Llama, kv_cache_bits: int | None) -> float:
    """Bytes of one element of the cache; if quantized, with its share of the head's float16 scale and minimum."""
    config = model.config
    assert config.head_dim is not None
    if kv_cache_bits is None:
        return model.embed_tokens.weight.element_size()
    return kv_cache_bits / 8 + 4 / config.head_dim


def default_num_blocks(
    model: Llama,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    memory_fraction: float,
    kv_cache_bits: int | None = None,
) -> int:
    """Blocks for a model that is already loaded: from ``memory_fraction`` of its own memory and what is free beside it.

    On a CPU, no more than ``max_num_seqs`` sequences of 1024 tokens or one of ``max_model_len`` need.
    """
    weight = model.embed_tokens.weight
    config, device = model.config, weight.device
    weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    memory = int(memory_fraction * (free_bytes(device) + weights))  # type: ignore[operator]
    blocks = blocks_that_fit(memory, weights, config, block_size, bytes_per_cached_element(model, kv_cache_bits))
    if device.type == "cpu":
        one = -(-max_model_len // block_size)
        blocks = min(blocks, max(one, max_num_seqs * -(-min(max_model_len, _TOKENS_ON_CPU) // block_size)))
    return blocks


def can_copy(model: Llama) -> bool:
    """Whether a second copy of the weights takes less than a quarter of the memory that is free."""
    return 4 * sum(each.nbytes for each in model.parameters()) < free_bytes(model.embed_tokens.weight.device)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that is not in use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def on_device(model: Llama, device: torch.device | str | None, dtype: torch.dtype | None) -> Llama:
    """The model itself if it is there already, else a copy.

    Raises:
        ValueError: a weight is too large for ``dtype``.
    """
    weight = model.embed_tokens.weight
    wanted = (weight.device if device is None else torch.device(device)), (weight.dtype if dtype is None else dtype)
    if wanted[0].type == weight.device.type and wanted[0].index in (None, weight.device.index):
        wanted = weight.device, wanted[1]
    if wanted == (weight.device, weight.dtype):
        return model
    for name, value in model.named_parameters():
        if torch.finfo(wanted[1]).max < torch.finfo(value.dtype).max:
            as_dtype(name, value, value.device, wanted[1])  # refuses what would become infinite
    return copy.deepcopy(model).to(*wanted)
