"""Activations on their way through a model, and its modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labsupport.lm import layer_inputs, load_lm
from labsupport.lm.activations import captured_inputs, captured_outputs, evaluating


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


class Reader(nn.Module):
    """One layer called twice, and a second reader of the same input; the layer "pair" returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.pair = nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.first(x)) + self.second(x) + self.pair(x)[0].sum(-1, keepdim=True)


def test_every_call_is_captured_and_nothing_after_the_block() -> None:
    model, x = Reader(), torch.randn(2, 3)
    with captured_inputs(model, ["first"]) as inputs, captured_outputs(model, ["first", "pair"]) as outputs:
        result = model(x)
    assert len(inputs["first"]) == len(outputs["first"]) == 2
    assert torch.equal(inputs["first"][0], x) and torch.equal(inputs["first"][1], outputs["first"][0])
    assert torch.equal(outputs["pair"][0], model.pair(x)[0])
    assert torch.equal(model(x), result)
    assert len(inputs["first"]) == len(outputs["first"]) == 2


def test_a_gradient_is_by_way_of_one_module_only() -> None:
    model, x = Reader(), torch.randn(2, 3)
    with captured_inputs(model, ["first", "second"], gradients=True) as seen:
        model(x).sum().backward()
    by_second = model.second.weight.sum(0).expand(2, 3)
    grad = seen["second"][0].grad
    assert grad is not None and torch.allclose(grad, by_second)
    first = seen["first"][0].grad
    assert first is not None and not torch.allclose(first, by_second)


def test_gradients_flow_through_captured_outputs() -> None:
    model = Reader()
    with captured_outputs(model, ["first"]) as outputs:
        model(torch.randn(2, 3))
    outputs["first"][-1].sum().backward()
    assert model.first.weight.grad is not None and model.second.weight.grad is None


def test_hooks_go_when_the_model_raises() -> None:
    model = Reader()
    with pytest.raises(RuntimeError), captured_outputs(model, ["first"]) as outputs:
        model(torch.randn(2, 4))
    model(torch.randn(2, 3))
    assert outputs["first"] == []
    with (
        pytest.raises(ValueError, match="names must be modules of the model; got 'third'"),
        captured_inputs(model, ["third"]),
    ):
        pass


def test_modes_come_back_one_by_one() -> None:
    model = Reader()
    model.second.eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert model.training and model.first.training and not model.second.training
