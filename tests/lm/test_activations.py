from __future__ import annotations

import pytest
import torch

from labsupport.lm import layer_inputs, load_lm


def test_they_are_what_the_layer_multiplies():
    model = load_lm("tiny", verbose=False).model
    tokens = torch.arange(40).view(2, 20)
    names = ["layers.0.self_attn.q_proj", "layers.3.mlp.down_proj"]
    inputs = layer_inputs(model, tokens, names)
    x, _ = model.embed(tokens)
    torch.testing.assert_close(inputs[names[0]], model.layers[0].input_layernorm(x).flatten(0, 1))
    assert inputs[names[1]].shape == (40, model.config.intermediate_size)
    assert not model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match=r"names must be modules of the model; got 'layers\.9'"):
        layer_inputs(load_lm("tiny", verbose=False).model, torch.zeros(1, 2, dtype=torch.int64), ["layers.9"])
