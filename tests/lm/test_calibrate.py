"""Calibration keeps the hidden states of all tokens and nothing else; what the stages show is what the layers read."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from exported import random_lm
from torch import Tensor

from labsupport.lm.activations import captured_inputs
from labsupport.lm.calibrate import NUM_STAGES, HiddenStates, stages
from labsupport.pruning import prune_model
from labsupport.quantization import quantize_model

WINDOWS = [torch.arange(start, start + 2048) % 256 for start in range(5)]  # a batch each


@pytest.mark.parametrize("fields", [{}, {"residual_multiplier": 0.3, "attention_multiplier": 0.2}])
def test_stages_show_what_the_layers_read(fields: dict[str, Any]) -> None:
    """With Granite's multipliers as well: they stand between the layers."""
    model, windows = random_lm(**fields).model, [torch.arange(30), torch.arange(30) + 40, torch.arange(9)]
    linears = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    with captured_inputs(model, linears) as read, torch.no_grad():
        for window in windows:
            model(window[None])
    for stage in stages(model, windows):
        got = torch.cat([batch.flatten(0, -2) for batch in stage.inputs])
        for name in stage.full_names:
            torch.testing.assert_close(got, torch.cat([x.flatten(0, -2) for x in read[name]]))
        whole = torch.cat([batch.flatten(0, -2) for batch in stage.inputs])
        for count in (1, 7, 69, 100):
            step = -(-len(whole) // count) or 1
            assert torch.equal(stage.sample(count), whole[:: max(1, step)])


def test_hidden_states_of_a_whole_layer() -> None:
    model, windows = random_lm(residual_multiplier=0.5).model, WINDOWS[:2]
    whole = HiddenStates.of(model, windows).through(model.layers[0])
    for stage in stages(model, windows):
        if stage.layer_index == 1:
            for got, expected in zip(stage.hidden.batches, whole.batches, strict=True):
                torch.testing.assert_close(got, expected)
            break


@pytest.mark.parametrize("method", ["gptq", "awq", "int8_static", "wanda", "sparsegpt"])
def test_one_batch_of_inputs_at_a_time(method: str) -> None:
    """As many outputs of layers and activations are alive at once with five batches as with two."""
    assert most_alive(method, WINDOWS) == most_alive(method, WINDOWS[:2])


def most_alive(method: str, windows: list[Tensor]) -> int:
    outputs: list[weakref.ref[Tensor]] = []
    most = 0

    def watch(_: Any, __: Any, output: Tensor) -> None:
        nonlocal most
        outputs.append(weakref.ref(output))
        most = max(most, sum(each() is not None for each in outputs))

    run: Any = prune_model if method in ("wanda", "sparsegpt") else quantize_model
    handle = torch.nn.modules.module.register_module_forward_hook(watch)
    try:
        run(random_lm().model, windows, method, progress=False)
    finally:
        handle.remove()
    assert len(outputs) > 2 * NUM_STAGES * len(windows)
    return most
