"""Folding a scale into the layer before: what AWQ and SmoothQuant do instead of dividing activations at run time.

The linear layers of a stage compute the same if the columns of their weights are multiplied by s, channel by channel,
and their inputs divided by it. The division costs nothing, because it goes into whatever makes the inputs:

    q, k, v        the RMSNorm before attention
    o              the rows of v: attention only averages values, channel by channel
    gate, up       the RMSNorm before the MLP
    down           the rows of up, one factor of the product up * silu(gate)

Under grouped-query attention several query heads share one KV head, and so several channels of o's input one row of v:
the scale must be the same for all of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.lm.calibrate import Stage

SOURCES = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn.v_proj",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp.up_proj",
}


def source_name(stage: Stage) -> str:
    """The module that makes the stage's inputs, such as "layers.3.input_layernorm"."""
    return f"layers.{stage.layer_index}.{SOURCES[stage.names[0]]}"


@torch.no_grad()
def fold(stage: Stage, scale: Float[Tensor, " in"]) -> None:
    """Multiply the stage's columns by ``scale`` and divide its source by it, from which its inputs are divided as well:
    the model computes the same."""
    for linear in stage.linears:
        linear.weight.mul_(scale)
    source, attention = stage.layer.get_submodule(SOURCES[stage.names[0]]), stage.layer.self_attn
    rows = scale
    if source is attention.v_proj:
        rows = scale.view(attention.num_kv_heads, -1, attention.head_dim)[:, 0].flatten()  # one query head of each
    source.weight.div_(rows[:, None] if source.weight.dim() == 2 else rows)
    if getattr(source, "bias", None) is not None:
        source.bias.div_(rows)
