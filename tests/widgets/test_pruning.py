"""Chapter 2's moving pictures: the numbers they state are those of the algorithms, and every control changes them."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

from labsupport.distillation import distillation_loss
from labsupport.pruning import magnitude_mask, nm_mask
from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets

SHARES = [0.0, 0.25, 0.5, 0.75]


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, INPUTS = floats(24, 48), floats(200, 48, seed=1) * floats(48, seed=6).exp()
MEASURED = pd.DataFrame(
    {"perplexity": [4.0, 4.5, 6.0, 30.0], "zeros inside": [2.0, 2.1, 1.9, 2.05], "rows out": [2.0, 1.5, 1.0, 0.5]},
    index=SHARES,
)
SCORES = {"activation": floats(40, seed=2).exp(), "taylor": floats(40, seed=3).exp()}
CURVES = pd.DataFrame({"activation": [4.0, 4.2, 5.0, 20.0], "taylor": [4.0, 4.1, 4.8, 17.0]}, index=SHARES)
LOGITS, STUDENT, LABELS = floats(6, 10, seed=4) * 4, floats(6, 10, seed=5), torch.arange(6)
CHAIN = pd.DataFrame(
    {"perplexity": [2.7, 3.9, 3.6, 2.8], "bytes": [100, 50, 8, 16], "ms": [4.0, 2.0, 2.1, 5.0]},
    index=["teacher", "student", "small", "quantized"],
)


@pytest.fixture(scope="module")
def all_widgets() -> dict[str, Live]:
    return {
        "sparsity": widgets.sparsity(WEIGHT, MEASURED, "perplexity", ["zeros inside", "rows out"]),
        "semi_structured": widgets.semi_structured(WEIGHT, INPUTS),
        "channel_importance": widgets.channel_importance(SCORES, CURVES, "perplexity"),
        "temperature": widgets.temperature(floats(6, 64).sigmoid(), LOGITS, STUDENT, LABELS),
        "trade_off": widgets.trade_off(CHAIN, "perplexity", {"bytes on disk": "bytes", "milliseconds": "ms"}),
    }


def others(control) -> list:
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        values = [control.min, control.max]
    return [value for value in values if value != control.value]


@pytest.mark.parametrize("name", ["sparsity", "semi_structured", "channel_importance", "temperature", "trade_off"])
def test_every_control_changes_picture_and_text_and_back(all_widgets, name):
    live = all_widgets[name]
    start, picture, text = live.values, live.png(), live.text
    for control, widget in live.controls.items():
        for value in others(widget):
            live.set(**{control: value})
            assert live.png() != picture, f"{control}={value} does not change the picture"
            assert live.text != text, f"{control}={value} does not change the text"
            live.set(**start)
    assert live.png() == picture and live.text == text


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", text)]


def test_sparsity_states_what_was_measured(all_widgets):
    live = all_widgets["sparsity"]
    live.set(zeros=0.75)
    largest = float(WEIGHT[~magnitude_mask(WEIGHT, 0.75)].abs().max())
    assert f"up to {largest:.3g}" in live.text
    assert "perplexity: 30" in live.text and "rows out: 0.5 ms, 4.00 times as fast" in live.text
    live.set(zeros=0.0)
    assert live.text.startswith("0 % zeros. perplexity: 4")


def test_semi_structured_judges_on_inputs_that_the_score_has_not_seen(all_widgets):
    live = all_widgets["semi_structured"]
    live.set(pattern="2:4", score="magnitude")
    judge = INPUTS[100:]
    masked = WEIGHT * nm_mask(WEIGHT.abs(), 2, 4)
    error = float((judge @ (masked - WEIGHT).t()).square().mean() / (judge @ WEIGHT.t()).square().mean())
    live_error = float(re.search(r"output error ([\d.]+) %", live.text)[1]) / 100
    assert live_error == pytest.approx(error, rel=0.05)
    by_wanda = float(re.search(r"by Wanda ([\d.]+) %", live.text)[1])
    assert by_wanda < 100 * live_error  # channels of very different size are what Wanda is for


def test_channels_that_go_are_counted_and_compared(all_widgets):
    live = all_widgets["channel_importance"]
    live.set(score="activation", removed=0.25)
    gone = {name: set(score.argsort()[:10].tolist()) for name, score in SCORES.items()}
    both = len(gone["activation"] & gone["taylor"])
    assert f"10 of 40 channels go ({both} of them taylor would remove as well). perplexity: 4.2." in live.text


def test_temperature_states_softmax_and_gradient(all_widgets):
    live = all_widgets["temperature"]
    live.set(image=3, t=8.0)
    p = (LOGITS[3] / 8).softmax(0)
    assert f"A 3 at T = 8: the teacher says {int(p.argmax())} with " in live.text
    student = STUDENT.clone().requires_grad_()
    distillation_loss(student, LOGITS, LABELS, 8.0, 1.0).backward()
    size = 6 * float(student.grad.norm(dim=1).mean())
    assert f"{size:.3g} with T², {size / 64:.2g} without" in live.text


def test_trade_off_finds_the_front_and_the_best_within_the_budget(all_widgets):
    live = all_widgets["trade_off"]
    live.set(cost="bytes on disk", budget=10)
    assert "best is “small”" in live.text
    assert "On the front: small, quantized, teacher." in live.text
    live.set(budget=15)
    assert "best is “small”" in live.text
    live.set(budget=20)
    assert "best is “quantized”" in live.text
    live.set(budget=5)
    assert "no model is that cheap" in live.text
    live.set(cost="milliseconds", budget=100)
    assert "On the front: student, small, teacher." in live.text and "best is “teacher”" in live.text
