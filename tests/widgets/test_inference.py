"""Chapter 4's moving pictures: the numbers they state are those of simulation, scheduler and casts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.simulate import affine_cost, simulate
from labsupport.kvcache.cost import Machine, decode_seconds
from labsupport.kvcache.sizes import PRESETS
from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.fp8 import fp8_fake_quantize
from labsupport.widgets import Live
from labsupport.widgets import inference as widgets

NAMES = ["scheduler_timeline", "block_use", "fp8_grid", "roofline_limits"]
MACHINES = {"slow": Machine(20e9, 200e9), "fast": Machine(3e12, 900e12)}


@pytest.fixture(scope="module")
def all_widgets() -> dict[str, Live]:
    return {
        "scheduler_timeline": widgets.scheduler_timeline(num_requests=12),
        "block_use": widgets.block_use(),
        "fp8_grid": widgets.fp8_grid({"bell": torch.linspace(-3, 3, 999), "odd": torch.linspace(0, 3, 999) ** 3}),
        "roofline_limits": widgets.roofline_limits(PRESETS, MACHINES),
    }


def others(control) -> list:
    if not hasattr(control, "options"):
        return [not control.value]
    values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    return [value for value in (values[0], values[-1]) if value != control.value]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_picture_draws_the_axes(all_widgets, name, monkeypatch):
    """What moves is animated: a move then takes tens of milliseconds, and not hundreds."""
    live = all_widgets[name]
    live.set(**live.values)
    drawn = []
    monkeypatch.setattr(live.figure.canvas, "draw", lambda: drawn.append(1))
    for control, widget in live.controls.items():
        before = live.values[control]
        live.set(**{control: others(widget)[0]})
        assert not drawn, f"{control} makes matplotlib draw the whole figure again"
        live.set(**{control: before})


def test_the_timeline_tells_what_the_simulation_gives(all_widgets):
    live = all_widgets["scheduler_timeline"]
    live.set(rate=8, prompt=256, output=16, slots=2, budget=32)
    requests = poisson_requests(8, 12, (64, 448), (4, 28), seed=3)
    cost = affine_cost(0.02, 0.0005, 0.001)
    for policy, name in widgets.POLICY_NAMES.items():
        row = simulate(requests, policy, 2, cost, 32 if policy == "chunked" else None).summary()
        assert f"{name}: {row['seconds']:.3g} s" in live.text
    gaps = [float(gap) for gap in re.findall(r"longest gap (\d+) ms", live.text)]
    assert gaps[2] <= 20 + 32 * 0.5 + 2 * 1 < gaps[1], "chunks bound the gap by the budget"


def test_bars_of_a_slot_do_not_overlap_and_add_up_to_the_steps():
    run = simulate(poisson_requests(4, 10, seed=1), "static", 3, affine_cost(0.02, 0.0005, 0.001))
    played = widgets._Played.of(run)
    for slot in range(3):
        low = 3 - slot - 0.92
        spans = sorted((bar[0, 0], bar[1, 0]) for bar in played.bars if bar[0, 1] == pytest.approx(low))
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans))
        busy = sum(step.seconds for step in run.steps if step.slots[slot][0] >= 0)
        assert sum(end - start for start, end in spans) == pytest.approx(busy)
    assert played.queue[1][-1] == 0 and min(played.queue[1]) >= 0 and max(played.queue[1]) <= 10


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_few_blocks_preempt_many_do_not(prefix_caching):
    few, many = (widgets.play_blocks(n, 1 / 5, prefix_caching, 16, 6, 8) for n in (16, 80))
    assert few.preempted_at and few.computed > few.needed and few.num_steps > many.num_steps
    assert many.preempted_at == [] and many.computed == many.needed == few.needed
    for run, pool in ((few, 16), (many, 80)):
        assert max(run.in_use) <= pool and all(a + b <= pool for a, b in zip(run.in_use, run.cached, strict=True))
        assert max(run.running) <= 6


def test_prefix_caching_finds_blocks_of_the_preempted_again():
    without, cached = (widgets.play_blocks(16, 1 / 5, on, 16, 6, 8) for on in (False, True))
    assert cached.computed - cached.needed < without.computed - without.needed
    assert max(without.cached) == 0 < max(cached.cached)


def test_block_use_tells_what_the_scheduler_did(all_widgets):
    live = all_widgets["block_use"]
    live.set(num_blocks=14, rate=1 / 2, prefix_caching=False)
    run = widgets.play_blocks(14, 1 / 2, False, 16, 6, 8)
    assert f"{run.num_steps} steps" in live.text and f"{len(run.preempted_at)} preemptions" in live.text
    assert f"{run.computed - run.needed} tokens computed again" in live.text
    assert "one in 2 steps" in live.text


def test_the_outlier_takes_levels_from_int8_and_hardly_any_from_fp8(all_widgets):
    live = all_widgets["fp8_grid"]
    live.set(values="bell", outlier=512)
    levels = {name: int(count) for name, count in re.findall(r"(\w+): (\d+) levels", live.text)}
    assert levels["INT8"] == 1 and levels["E4M3"] > 100
    x = torch.linspace(-3, 3, 999)
    x = torch.cat([x / x.square().mean().sqrt(), torch.tensor([512.0])])
    for name, y in (("INT8", fake_quantize(x, symmetric=True)), ("E4M3", fp8_fake_quantize(x, "e4m3"))):
        error = float((y - x)[:-1].square().mean().sqrt())
        assert f"{name}: {levels[name]} levels between -4 and 4, error {widgets.percent(error)}" in live.text


def test_without_an_outlier_int8_is_the_more_exact_one(all_widgets):
    live = all_widgets["fp8_grid"]
    live.set(values="bell", outlier=8)
    errors = {name: float(error) for name, error in re.findall(r"(\w+): \d+ levels[^,]*, error ([\d.]+) %", live.text)}
    assert errors["INT8"] < errors["E4M3"] < errors["E5M2"]


def test_fp8_grid_wants_values():
    with pytest.raises(ValueError, match="values must hold tensors that are finite"):
        widgets.fp8_grid({"nothing": torch.zeros(5)})


def test_the_roofline_tells_what_the_cost_model_counts(all_widgets):
    live = all_widgets["roofline_limits"]
    live.set(machine="fast", model="Llama 3 8B", batch=64, length=512, weights="8 bits")
    best = decode_seconds(PRESETS["Llama 3 8B"].config, MACHINES["fast"], 512, 64, bytes_per_weight=1)
    assert f"at best {64 / best.seconds:,.3g} tokens/s and {1e3 * best.seconds:.3g} ms a step" in live.text
    assert f"Bound by {best.bound}" in live.text and "the ridge is at 300" in live.text
