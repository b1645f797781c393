"""What the pictures refuse to draw."""

from __future__ import annotations

import math

import pytest
import torch

from labsupport.widgets import quantization as widgets


@pytest.mark.parametrize("make", [widgets.quantization_grid, widgets.fp8_grid, widgets.observer_ranges])
@pytest.mark.parametrize("bad", [torch.empty(0), torch.zeros(5), torch.tensor([1.0, math.nan]), {}])
def test_values_that_cannot_be_drawn_are_refused(make, bad):
    with pytest.raises(ValueError, match="values must be"):
        make(bad)


@pytest.mark.parametrize("make", [widgets.granularity, widgets.gptq_propagation, widgets.awq_alpha])
def test_inputs_of_another_layer_are_refused(make, weight):
    with pytest.raises(ValueError, match=rf"inputs must end in the weight's {weight.shape[1]} input channels"):
        make(weight, torch.randn(10, weight.shape[1] + 1))
