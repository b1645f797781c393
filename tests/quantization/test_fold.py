"""A scale folded into the layer before: the model computes the same, and every stage takes one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labsupport.lm.calibrate import stages
from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama
from labsupport.quantization.fold import fold, source_name


def build(num_kv_heads: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=num_kv_heads
    )
    return Llama(config).eval()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@torch.no_grad()
def test_the_model_computes_the_same(num_kv_heads: int) -> None:
    model, tokens = build(num_kv_heads), torch.arange(40).view(2, 20)
    expected, generator = model(tokens), torch.Generator().manual_seed(1)
    names = []
    for stage in stages(model, list(tokens)):
        before, weights = [x.clone() for x in stage.inputs], [linear.weight.clone() for linear in stage.linears]
        scale = torch.rand(stage.in_features, generator=generator) + 0.5
        if "self_attn.o_proj" in stage.names:  # query heads that share a KV head share its scale
            scale = (
                scale.view(num_kv_heads, -1, model.config.head_dim)[:, :1].expand(-1, 4 // num_kv_heads, -1).flatten()
            )
        fold(stage, scale)
        assert all(torch.equal(linear.weight, w * scale) for linear, w in zip(stage.linears, weights, strict=True))
        assert all(torch.allclose(x, b / scale, atol=1e-6) for x, b in zip(stage.inputs, before, strict=True))
        names.append(source_name(stage))
        model.get_submodule(names[-1])
    assert torch.allclose(model(tokens), expected, atol=1e-4 * float(expected.abs().max()))
    assert len(set(names)) == 8
