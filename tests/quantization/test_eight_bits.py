from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.eight_bits import in_eight_bits
from labsupport.quantization.fp8 import fp8_fake_quantize


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.lm_head = (nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.down(self.up(x)))


@pytest.fixture
def model() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers()


def test_weights_are_rounded_by_row_and_the_head_and_the_original_stay(model: TwoLayers) -> None:
    before = copy.deepcopy(model.state_dict())
    rounded: Any = in_eight_bits(model, "e4m3")
    assert torch.equal(rounded.up.weight, fp8_fake_quantize(model.up.weight.data, "e4m3", axis=0))
    assert not torch.equal(rounded.up.weight, model.up.weight)
    assert torch.equal(rounded.lm_head.weight, model.lm_head.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_share_one_scale_and_only_the_named_layers_round_them(model: TwoLayers) -> None:
    x = torch.randn(5, 16)
    x[3, 7] = 100.0  # sets the scale of all rows
    both: Any = in_eight_bits(model, "int8", inputs="")
    only_up: Any = in_eight_bits(model, "int8", inputs="up")
    hidden = fake_quantize(x, symmetric=True) @ both.up.weight.T
    assert torch.allclose(only_up(x), model.lm_head(only_up.down(hidden)), rtol=1e-4, atol=1e-5)
    exact = fake_quantize(hidden, symmetric=True) @ both.down.weight.T @ model.lm_head.weight.T
    assert torch.allclose(both(x), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4",), "number must be one of int8, e4m3, e5m2; got 'int4'"),
        (("int8", "attention"), "such as 'up'; got 'attention'"),
    ],
)
def test_bad_input_is_named(model: TwoLayers, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_eight_bits(model, *arguments)
