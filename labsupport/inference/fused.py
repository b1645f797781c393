"""The forward pass of `Llama` with few operations: what the engine runs on a CPU where Numba is installed.

A decode step is many small operations. `Llama` says what they are; this says the same with q, k, v in one matmul, gate
and up in one, and compiled code for all that lies between the matmuls (numba_ops.py). Attention of the sequences that
decode reads keys and values through their block tables, where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from labsupport.inference.merged import merge
from labsupport.inference.packed import PackedBatch
from labsupport.lm import Llama
from labsupport.quantization.kernels import has_numba


class FusedLlama:
    """A view of ``model`` for inference: its weights, the same results up to rounding.

    Args:
        pack: float32 weights in a copy that is faster to multiply with (merged.PackedLinear).
    """

    def __init__(self, model: Llama, pack: bool = False) -> None:
        self.model = model
        self.layers = [_FusedLayer(layer, pack) for layer in model.layers]
        self.lm_head = merge([model.lm_head], pack)

    @staticmethod
    def supports(model: Llama) -> bool:
        weight = model.embed_tokens.weight
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and has_numba()

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "tokens hidden"]:
        """What ``lm_head`` reads, for all tokens of the batch."""
        from labsupport.inference.numba_ops import add_and_norm

        model, eps = self.model, self.model.config.rms_norm_eps
        x, (cos, sin) = model.embed(batch.tokens, batch)
        x, rotary = x[0], (cos[0, 0].numpy(), sin[0, 0].numpy())
        delta, normed = torch.zeros_like(x), torch.empty_like(x)
        residual, out = x.numpy(), normed.numpy()
        for index, layer in enumerate(self.layers):
            add_and_norm(residual, delta.numpy(), layer.attention_norm, eps, out)
            delta = layer.output(attend(batch, index, layer.qkv(normed), rotary))
            add_and_norm(residual, delta.numpy(), layer.mlp_norm, eps, out)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            delta = layer.down(F.silu(gate).mul_(up))
        add_and_norm(residual, delta.numpy(), model.norm.weight.detach().numpy(), eps, out)
        batch.advance(batch.tokens.shape[1])
        return normed


class _FusedLayer:
    def __init__(self, layer: Any, pack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_norm = layer.input_layernorm.weight.detach().numpy()
        self.qkv = merge([attention.q_proj, attention.k_proj, attention.v_proj], pack)
        self.output = merge([attention.o_proj], pack)
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().numpy()
        self.gate_up = merge([mlp.gate_proj, mlp.up_proj], pack)
        self.down = merge([mlp.down_proj], pack)


def attend(
    batch: PackedBatch, layer_index: int, qkv: Float[Tensor, "tokens heads_and_kv_heads*head_dim"], rotary: Any
) -> Float[Tensor, "tokens num_heads*head_dim"]:
    """Rotate, store, and attend: each token to its own sequence."""
    from labsupport.inference.numba_ops import decode_attention, rotate_and_store
    from labsupport.quantization.numba_kernels import in_threads

    key_blocks, value_blocks = batch.cache.blocks[layer_index]
    num_kv_heads, _, head_dim = key_blocks.shape[1:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    keys, values = key_blocks.numpy(), value_blocks.numpy()
    rotate_and_store(qkv.numpy(), *rotary, batch.slots, num_heads, keys, values)
    query = qkv[:, : num_heads * head_dim]
    context = torch.empty(query.shape)
    decodes = len(batch.lengths)
    if decodes:
        arrays = (query.numpy(), keys, values, batch.tables, batch.lengths, context.numpy())
        in_threads(decode_attention, arrays, decodes, 2 * int(batch.lengths.sum()) * num_heads * head_dim)
    for chunk in batch.chunks:
        own = query[chunk.start : chunk.end].view(1, -1, num_heads, head_dim).transpose(1, 2)
        held = [
            blocks[chunk.table].transpose(0, 1).flatten(1, 2)[None, :, : chunk.length]
            for blocks in (key_blocks, value_blocks)
        ]
        attended = F.scaled_dot_product_attention(
            own, *held, attn_mask=chunk.mask, is_causal=chunk.mask is None, enable_gqa=True
        )
        context[chunk.start : chunk.end] = attended[0].transpose(0, 1).flatten(1)
    return context
