"""Chapter 1's moving pictures: the numbers they state are those of the algorithms, and every control changes them."""

from __future__ import annotations

import math
import re
from itertools import combinations

import ipywidgets
import pytest
import torch

from labsupport.quantization import choose_qparams, fake_quantize, fp8_fake_quantize, fp8_format, rtn_quantize
from labsupport.quantization.gptq import gptq_quantize
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets

OUT, IN, TOKENS = 24, 48, 400


@pytest.fixture(scope="module")
def weight():
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, OUT)[:, None]


@pytest.fixture(scope="module")
def inputs():
    """Correlated, and a few channels far larger than the rest, as in language models."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(IN // 4, IN, generator=generator) + 0.2 * torch.randn(IN // 4, IN, generator=generator)
    x = torch.randn(TOKENS, IN // 4, generator=generator) @ mix + 0.1 * torch.randn(TOKENS, IN, generator=generator)
    x[:, :3] *= 15
    return x.view(4, TOKENS // 4, IN)


@pytest.fixture(scope="module")
def all_widgets(weight, inputs) -> dict[str, Live]:
    return {
        "quantization_grid": widgets.quantization_grid({"weights": weight, "activations": inputs.relu()}),
        "granularity": widgets.granularity(weight, inputs),
        "gptq_propagation": widgets.gptq_propagation(weight, inputs),
        "awq_alpha": widgets.awq_alpha(weight, inputs),
        "fp8_grid": widgets.fp8_grid({"weights": weight, "activations": inputs}),
        "observer_ranges": widgets.observer_ranges({"activations": inputs, "weights": weight}),
    }


NAMES = ["quantization_grid", "granularity", "gptq_propagation", "awq_alpha", "fp8_grid", "observer_ranges"]


def number(text: str, pattern: str) -> float:
    """The number at {} of a pattern such as "step {};"."""
    found = re.search(re.escape(pattern).replace(r"\{\}", r"([-+.\de]+)"), text)
    assert found, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def other_values(control) -> list:
    """Both ends of a slider, all other options of a choice."""
    if isinstance(control, ipywidgets.Checkbox):
        return [not control.value]
    if hasattr(control, "options"):
        values = [o[1] if isinstance(o, tuple) else o for o in control.options]
    else:
        values = [control.min, control.max]
    return [value for value in values if value != control.value]


@pytest.mark.parametrize("name", NAMES)
def test_every_control_changes_picture_and_text_and_back(all_widgets, name):
    live = all_widgets[name]
    start, picture, text = live.values, live.png(), live.text
    for control, widget in live.controls.items():
        for value in other_values(widget):
            live.set(**{control: value})
            assert live.png() != picture, f"{control}={value} does not change the picture"
            assert live.text != text, f"{control}={value} does not change the text"
            live.set(**start)
    assert live.png() == picture and live.text == text


@pytest.mark.parametrize("name", NAMES)
def test_text_is_one_line_with_finite_numbers(all_widgets, name):
    text = all_widgets[name].text
    assert "\n" not in text and text.endswith(".") and re.search(r"\d", text)
    assert not re.search(r"\bnan\b|\binf\b", text)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_off_or_written_over_another(all_widgets, name):
    figure = all_widgets[name].figure
    width, height = figure.canvas.get_width_height(physical=True)
    texts = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
    assert len(texts) > 10
    for text, box in texts:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, f"{text!r} is cut off"
    for (first, a), (second, b) in combinations(texts, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
        assert apart, f"{first!r} and {second!r} overlap"


def drawn_texts(figure):
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [text for tick in ticks for text in (tick.label1, tick.label2)]
        yield from (text for text in texts if text.get_visible() and text.get_text())


def test_grid_states_the_algorithms_numbers(all_widgets, weight):
    live = all_widgets["quantization_grid"]
    live.set(values="weights", bits=4, outlier=0, kept_range=100, symmetric=True)
    qparams = choose_qparams(weight, bits=4, symmetric=True)
    error = fake_quantize(weight, bits=4, symmetric=True) - weight
    assert number(live.text, "{} levels") == 15
    assert number(live.text, "step {};") == pytest.approx(float(qparams.scale), rel=1e-2)
    assert number(live.text, "RMS error {},") == pytest.approx(float(error.square().mean().sqrt()), rel=1e-2)
    assert number(live.text, "worst error inside the range {} half steps") <= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kept_range", [30, 100])
@pytest.mark.parametrize("outlier", [0, 8])
def test_grid_error_is_at_most_half_a_step_inside_the_range(all_widgets, bits, kept_range, outlier):
    live = all_widgets["quantization_grid"]
    live.set(values="activations", bits=bits, outlier=outlier, kept_range=kept_range, symmetric=False)
    assert number(live.text, "worst error inside the range {} half steps") <= 1.0
    assert ("0 % of the values are clipped" in live.text) == (kept_range == 100)


def test_granularity_states_the_algorithms_numbers(all_widgets, weight, inputs):
    live = all_widgets["granularity"]
    live.set(scale="group of 16", bits=3)
    quantized = rtn_quantize(weight, 3, 16)
    x = inputs.reshape(-1, IN)
    error = (x @ (quantized.dequantize() - weight).t()).square().mean() / (x @ weight.t()).square().mean()
    assert number(live.text, "bits: {} bits per weight") == pytest.approx(quantized.bits_per_weight, abs=1e-3)
    assert number(live.text, "output error {} %") == pytest.approx(100 * float(error), rel=0.06)


def test_finer_scales_bring_less_output_error(all_widgets):
    live = all_widgets["granularity"]
    errors = []
    for scale in ("tensor", "row", "group of 16"):
        live.set(scale=scale, bits=4)
        errors.append(number(live.text, "output error {} %"))
    assert errors[0] > errors[1] > errors[2]


def test_gptq_ends_at_the_weight_that_gptq_quantize_gives(all_widgets, weight, inputs):
    live = all_widgets["gptq_propagation"]
    live.set(columns_done=IN, bits=3, inputs="real activations")
    x = inputs.reshape(-1, IN)
    seen, held_out = x[: TOKENS // 2], x[TOKENS // 2 :]
    power = (held_out @ weight.t()).square().sum()
    quantized = gptq_quantize(weight, seen.t() @ seen, bits=3, group_size=None).dequantize()
    nearest = rtn_quantize(weight, 3, None).dequantize()
    gptq, rtn = ((held_out @ (w - weight).t()).square().sum() / power for w in (quantized, nearest))
    assert number(live.text, "at the end {} %") == pytest.approx(100 * float(gptq), rel=0.06)
    assert number(live.text, "% and {} % of the output power") == pytest.approx(100 * float(rtn), rel=0.06)
    assert gptq < rtn


def test_e15_gptq_on_uncorrelated_inputs_is_round_to_nearest(all_widgets):
    live = all_widgets["gptq_propagation"]
    live.set(columns_done=IN // 2, bits=2, inputs="uncorrelated")
    assert number(live.text, "so far: GPTQ {} %") == number(live.text, "RTN {} %") > 0
    assert "have moved by 0.00 steps" in live.text


def test_gptq_starts_at_no_error(all_widgets):
    live = all_widgets["gptq_propagation"]
    live.set(columns_done=0, bits=3, inputs="real activations")
    assert "so far: GPTQ 0 %, RTN 0 %" in live.text


def test_e21_awq_lowers_output_error_where_weight_error_rises(all_widgets):
    """The source judged AWQ by its weight error, by which the best scale looks worse than none."""
    live = all_widgets["awq_alpha"]
    live.set(bits=3, group_size="whole row")
    best = number(live.text, "search takes α = {},")
    assert best > 0
    live.set(alpha=best)
    assert number(live.text, "output error {} and") < 1 < number(live.text, "weight error {} times")


def test_awq_without_scaling_is_the_unit(all_widgets):
    live = all_widgets["awq_alpha"]
    live.set(alpha=0.0, bits=4)
    assert "α = 0.00: output error 1.00 and weight error 1.00 times" in live.text


@pytest.mark.parametrize("exponent", [-8, 0, 6])
def test_fp8_states_the_casts_numbers(all_widgets, inputs, exponent):
    live = all_widgets["fp8_grid"]
    live.set(values="activations", exponent=exponent)
    x = inputs.flatten() * 2.0**exponent
    for name, code in (("E4M3", "e4m3"), ("E5M2", "e5m2")):
        error = (fp8_fake_quantize(x, code, scale=1.0) - x).square().mean().sqrt() / x.square().mean().sqrt()
        stated = number(live.text.split("Lost")[0], f"{name} {{}} %")
        assert stated == pytest.approx(100 * float(error), rel=0.06)


@pytest.mark.parametrize("code", ["e4m3", "e5m2"])
def test_fp8_bound_holds_for_every_number(code):
    x = 2.0 ** torch.linspace(-24, 18, 5000)
    error = (fp8_fake_quantize(x, code, scale=1.0) - x).abs() / x
    bound = torch.from_numpy(widgets._fp8_bound(x.double().numpy(), code))
    assert (error <= bound * (1 + 1e-6)).all()
    normal = (x >= fp8_format(code).min_normal) & (x <= fp8_format(code).max)
    assert (error / bound)[normal].max() > 0.95  # and it is tight


def test_observer_mse_is_never_worse_than_the_others(all_widgets):
    live = all_widgets["observer_ranges"]
    for bits in (3, 8):
        live.set(values="activations", bits=bits, percentile=99.0)
        errors = {name: number(live.text.split(name)[1], "error {} %") for name in ("min–max", "percentile", "MSE")}
        assert errors["MSE"] <= 1.05 * min(errors.values())


@pytest.mark.parametrize("make", [widgets.quantization_grid, widgets.fp8_grid, widgets.observer_ranges])
@pytest.mark.parametrize("bad", [torch.empty(0), torch.zeros(5), torch.tensor([1.0, math.nan]), {}])
def test_values_that_cannot_be_drawn_are_refused(make, bad):
    with pytest.raises(ValueError, match="values must be"):
        make(bad)


@pytest.mark.parametrize("make", [widgets.granularity, widgets.gptq_propagation, widgets.awq_alpha])
def test_inputs_of_another_layer_are_refused(make, weight):
    with pytest.raises(ValueError, match=rf"inputs must end in the weight's {IN} input channels"):
        make(weight, torch.randn(10, IN + 1))
