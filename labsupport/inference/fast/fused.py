"""The forward pass of `Llama` in fewer operations: what the engine runs on a CPU if Numba is installed.

A decode step consists of many small operations. `Llama` shows what they are; this module does the same with q, k and v
in one matmul, gate and up in another, and compiled code for everything between the matmuls (numba_ops.py). For
sequences that decode, attention reads keys and values in place through the block tables, as floats or as 8-bit codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.inference.fast.merged import merge
from labsupport.inference.packed import Chunk, PackedBatch
from labsupport.kvcache import QuantizedPagedKVCache
from labsupport.lm import Llama
from labsupport.quantization.fast.probes import has_numba
from labsupport.quantization.layers.integer import IntegerLinear

if has_numba():
    from labsupport.inference.fast.numba_ops import (
        add_and_norm,
        decode_attention,
        decode_attention_int8,
        find_ranges,
        rotate_and_store,
        store_codes,
        turn,
    )
    from labsupport.quantization.fast.compiled import in_threads


class FusedLlama:
    """A view of ``model`` for inference: the same weights, and the same results up to rounding.

    Args:
        pack: keep a copy of float32 weights in a layout that multiplies faster (merged.PackedLinear).
    """

    def __init__(self, model: Llama, pack: bool = False) -> None:
        self.model = model
        self.layers = [_FusedLayer(layer, pack) for layer in model.layers]
        self.norm = (model.norm.weight.detach() / model.config.logits_scaling).numpy()
        self.lm_head = merge([model.lm_head], pack)

    @staticmethod
    def supports(model: Llama, kv_cache_bits: int | None = None) -> bool:
        weight = model.embed_tokens.weight
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
        return on_cpu and kv_cache_bits in (None, 8) and has_numba()

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "tokens hidden"]:
        """The inputs of ``lm_head``, for all tokens of the batch."""
        model, eps = self.model, self.model.config.rms_norm_eps
        x, (cos, sin) = model.embed(batch.tokens, batch)
        kind = _Int8Attention if isinstance(batch.cache, QuantizedPagedKVCache) else _Attention
        attention = kind(batch, model.config.num_heads, cos[0, 0].numpy(), sin[0, 0].numpy())
        unturned = kind(batch, model.config.num_heads, *_no_turn(cos)) if model.config.unturned_layers else attention
        normed = torch.empty_like(x[0])
        residual, delta, out = x[0].numpy(), torch.zeros_like(normed), normed.numpy()
        for index, layer in enumerate(self.layers):
            add_and_norm(residual, delta.numpy(), layer.attention_norm, eps, out)
            attend = attention if layer.turned else unturned
            delta = layer.scaled(layer.output(attend(index, layer.normed_heads(layer.qkv(normed)), layer.window)))
            add_and_norm(residual, delta.numpy(), layer.mlp_norm, eps, out)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            delta = layer.scaled(layer.down(F.silu(gate).mul_(up)))
        add_and_norm(residual, delta.numpy(), self.norm, eps, out)
        batch.advance(batch.tokens.shape[1])
        return normed


class _FusedLayer:
    def __init__(self, layer: Any, pack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_norm = layer.input_layernorm.weight.detach().numpy()
        self.qkv = _function(merge([attention.q_proj, attention.k_proj, attention.v_proj], pack))
        self.output = _function(merge([attention.o_proj], pack))
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().numpy()
        self.gate_up = _function(merge([mlp.gate_proj, mlp.up_proj], pack))
        self.down = _function(merge([mlp.down_proj], pack))
        self.attention, self.turned, self.window = attention, attention.turned, attention.window
        self.residual_multiplier = layer.residual_multiplier

    def normed_heads(self, qkv: Tensor) -> Tensor:
        """In place, where the model has it: norms of the heads of queries and keys, and a scale of the queries."""
        own, num_heads = self.attention, self.attention.num_heads
        if own.qk_norm:
            heads = qkv.unflatten(1, (-1, own.head_dim))
            last = num_heads + own.num_kv_heads
            heads[:, :num_heads] = own.q_norm(heads[:, :num_heads])
            heads[:, num_heads:last] = own.k_norm(heads[:, num_heads:last])
        if own.query_scale != 1:
            qkv[:, : num_heads * own.head_dim] *= own.query_scale
        return qkv

    def scaled(self, delta: Tensor) -> Tensor:
        return delta if self.residual_multiplier == 1 else delta.mul_(self.residual_multiplier)


def _no_turn(cos: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the angle 0, for layers without rotary positions."""
    return torch.ones_like(cos[0, 0]).numpy(), torch.zeros_like(cos[0, 0]).numpy()


class _Attention:
    """Rotate, store, and attend, each token to its own sequence. What all layers share is computed once."""

    def __init__(self, batch: PackedBatch, num_heads: int, cos: np.ndarray, sin: np.ndarray) -> None:
        self.cache, self.num_heads, self.width = batch.cache, num_heads, num_heads * batch.cache.head_dim
        self.cos, self.sin, self.slots = cos, sin, batch.slots
        self.tables, self.lengths, self.chunks = batch.tables, batch.lengths, batch.chunks
        self.work = 2 * int(self.lengths.sum()) * self.width

    def seen_from(self, window: int | None) -> np.ndarray:
        """[decodes]: the first token that each sequence's new one sees."""
        return np.zeros_like(self.lengths) if window is None else np.maximum(self.lengths - window, 0)

    def __call__(
        self, layer_index: int, qkv: Float[Tensor, "tokens heads_and_kv_heads*head_dim"], window: int | None = None
    ) -> Float[Tensor, "tokens num_heads*head_dim"]:
        keys, values = self.cache.blocks[layer_index].numpy()
        rows = qkv.numpy()
        rotate_and_store(rows, self.cos, self.sin, self.slots, self.num_heads, keys, values)
        context = torch.empty(len(qkv), self.width)
        if len(self.lengths):
            reach = (self.tables, self.seen_from(window), self.lengths)
            arrays = (rows[:, : self.width], keys, values, *reach, context.numpy())
            in_threads(decode_attention, arrays, len(self.lengths), self.work)
        for chunk in self.chunks:
            key, value = self.cache.read_blocks(layer_index, chunk.table)
            self._attend_chunk(chunk, qkv[:, : self.width], key, value, context, window)
        return context

    def _attend_chunk(
        self, chunk: Chunk, query: Tensor, key: Tensor, value: Tensor, context: Tensor, window: int | None
    ) -> None:
        """query, context: [tokens, num_heads * head_dim]; key, value: [num_kv_heads, slots, head_dim]."""
        new = slice(chunk.start, chunk.end)
        own = query[new].unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        mask = chunk.mask(window)
        attended = F.scaled_dot_product_attention(
            own[None], key[None, :, : chunk.length], value[None, :, : chunk.length], attn_mask=mask,
            is_causal=mask is None, enable_gqa=True,
        )  # fmt: skip
        context[new] = attended[0].transpose(0, 1).flatten(1)


class _Int8Attention(_Attention):
    """The same for `QuantizedPagedKVCache`: keys, values and queries are rotated, keys and values held as codes."""

    cache: QuantizedPagedKVCache

    def __init__(self, batch: PackedBatch, num_heads: int, cos: np.ndarray, sin: np.ndarray) -> None:
        super().__init__(batch, num_heads, cos, sin)
        self.blocks, self.places = (torch.from_numpy(each) for each in divmod(self.slots, self.cache.block_size))
        self.table = torch.from_numpy(self.tables)
        self.every = np.arange(len(self.slots))

    def __call__(
        self, layer_index: int, qkv: Float[Tensor, "tokens heads_and_kv_heads*head_dim"], window: int | None = None
    ) -> Float[Tensor, "tokens num_heads*head_dim"]:
        cache, codes, scales = self.cache, self.cache.codes[layer_index], self.cache.scales[layer_index]
        piece, num_kv_heads, head_dim = len(cache.hadamard), cache.num_kv_heads, cache.head_dim
        new = torch.empty(2, len(qkv), num_kv_heads, head_dim)
        keys_and_values = new.numpy()
        rotate_and_store(
            qkv.numpy(), self.cos, self.sin, self.every, self.num_heads, *keys_and_values[:, :, :, None]
        )  # fmt: skip
        heads = keys_and_values.reshape(-1, head_dim)  # the same numbers, a row for each head
        turn(heads, piece)
        ranges = torch.empty(2, len(qkv), num_kv_heads, 2)
        find_ranges(heads, ranges.numpy().reshape(-1, 2))
        held = ranges.clamp_(-65504, 65504).half()
        scales.transpose(2, 3)[:, self.blocks, self.places] = held
        as_held = held.float().numpy()  # codes for the scale as it is stored
        keys, values = codes.numpy()
        store_codes(keys_and_values[0], as_held[0], self.slots, keys)
        store_codes(keys_and_values[1], as_held[1], self.slots, values)
        query = qkv[:, : self.width].contiguous()
        turn(query.numpy().reshape(-1, head_dim), piece)
        context = torch.empty(len(qkv), self.width)
        if len(self.lengths):
            key_scales, value_scales = scales[:, self.table].float().numpy()
            reach = (self.tables, self.seen_from(window), self.lengths)
            arrays = (query.numpy(), keys, values, key_scales, value_scales, *reach, context.numpy())
            in_threads(decode_attention_int8, arrays, len(self.lengths), self.work)
        for chunk in self.chunks:
            key, value = cache.read_blocks(layer_index, chunk.table)
            self._attend_chunk(chunk, query, key, value, context, window)
        turn(context.numpy().reshape(-1, head_dim), piece)
        return context


def _function(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """Without what `nn.Module` does around forward: at batch 1 that takes as long as the matmul."""
    return linear._matmul if isinstance(linear, IntegerLinear) and linear.bias is None else linear.forward
