"""The model's side of the engine: its device, precision and cache, and the forward pass of a plan."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.inference.fast.fused import FusedLlama
from labsupport.inference.memory import can_copy, default_num_blocks, on_device
from labsupport.inference.packed import PackedBatch
from labsupport.inference.plan import Plan
from labsupport.kvcache import PagedKVCache, QuantizedPagedKVCache
from labsupport.lm import Llama
from labsupport.numerics.devices import from_host


class ModelRunner:
    """A model, its paged cache, and the choice between `Llama` and its compiled twin.

    Args: those of `LLMEngine`.

    Raises:
        ValueError: a number is out of range, or the memory is too small.
    """

    def __init__(
        self,
        model: Llama,
        max_num_seqs: int,
        block_size: int,
        num_blocks: int | None,
        enable_prefix_caching: bool,
        max_model_len: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        memory_fraction: float | None,
        kv_cache_bits: int | None,
        fused: bool | None,
    ) -> None:
        self.model: Llama = on_device(model, device, dtype)
        self.max_model_len = self.model.config.max_positions if max_model_len is None else max_model_len
        for name, value in (("max_num_seqs", max_num_seqs), ("block_size", block_size),
                            ("max_model_len", self.max_model_len)):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        longest = self.model.config.longest_text
        if self.max_model_len > longest:
            raise ValueError(
                f"max_model_len must be at most {longest}, the positions of the model; got {self.max_model_len}"
            )
        if memory_fraction is None:
            memory_fraction = 0.5 if self.device.type == "cpu" else 0.9
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be above 0 and at most 1; got {memory_fraction}")
        can_fuse = FusedLlama.supports(self.model, kv_cache_bits)
        if fused and not can_fuse:
            raise ValueError(
                "fused must be False or None here: it needs a CPU, float32, Numba and kv_cache_bits 8 or None"
            )
        self.fused = FusedLlama(self.model, pack=can_copy(self.model)) if can_fuse and fused is not False else None
        if num_blocks is None:
            num_blocks = default_num_blocks(
                self.model, block_size, max_num_seqs, self.max_model_len, memory_fraction, kv_cache_bits
            )
        sizes = self.model, num_blocks, block_size, enable_prefix_caching
        self.cache = (
            PagedKVCache.for_model(*sizes)
            if kv_cache_bits is None
            else QuantizedPagedKVCache.for_model(*sizes, bits=kv_cache_bits)
        )

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @torch.no_grad()
    def forward(self, plan: Plan) -> Float[Tensor, "positions vocab"]:
        """Compute the plan's tokens. Logits at its ``logit_positions``, no others."""
        decodes = [(each.request.request_id, each.token_ids[0]) for each in plan.decodes]
        chunks = [(each.request.request_id, each.token_ids) for each in plan.chunks]
        batch = PackedBatch(self.cache, decodes, chunks)
        if self.fused is None:
            hidden = self.model.hidden_states(batch.tokens, batch)[0]
        else:
            hidden = self.fused.hidden_states(batch)
        if not plan.logit_positions:
            return hidden.new_empty(0, self.model.config.vocab_size)
        wanted = from_host(plan.logit_positions, hidden.device, torch.int64)
        return (self.fused or self.model).lm_head(hidden[wanted]).float()
