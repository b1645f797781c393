"""Chapter 3's moving pictures: the numbers they state are those of the algorithms, and every control changes them."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from labsupport.kvcache.cost import next_token_cost
from labsupport.kvcache.sizes import PRESETS, kv_cache_bytes, weight_bytes
from labsupport.lm.model import LlamaConfig
from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets

TINY = LlamaConfig(256, 192, 512, 4, 6, 2)
TIMES = pd.DataFrame(
    {"with cache": [2.0, 2.1, 2.2], "without": [4.0, 9.0, 22.0]}
    | {"with cache, roofline": [0.5, 0.5, 0.6], "without, roofline": [1.0, 3.0, 9.0]},
    index=[32, 128, 512],
)
HEADS = pd.DataFrame(
    {"bytes a token": [6144.0, 3072, 1024], "pooled": [4.0, 6.0, 9.0], "uptrained": [4.1, 4.3, 4.9]}, index=[6, 3, 1]
)


@pytest.fixture(scope="module")
def all_widgets() -> dict[str, Live]:
    return {
        "memory": widgets.memory(PRESETS),
        "decoding": widgets.decoding(TINY, TIMES),
        "block_table": widgets.block_table(),
        "heads": widgets.heads(6, HEADS),
    }


def others(control) -> list:
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        values = [control.min, control.max]
    return [value for value in values if value != control.value]


@pytest.mark.parametrize("name", ["memory", "decoding", "block_table", "heads"])
def test_every_control_changes_picture_and_text_and_back(all_widgets, name):
    live = all_widgets[name]
    start, picture, text = live.values, live.png(), live.text
    for control, widget in live.controls.items():
        for value in others(widget):
            live.set(**{control: value})
            if (control, value) == ("heads", "MHA"):  # Llama 2 7B is MHA as published
                continue
            assert live.png() != picture, f"{control}={value} does not change the picture"
            assert live.text != text, f"{control}={value} does not change the text"
            live.set(**start)
    live.set(**start)
    assert live.png() == picture and live.text == text


def test_memory_counts_weights_and_cache(all_widgets):
    live = all_widgets["memory"]
    live.set(model="Llama 2 70B", length=8192, batch=32, heads="MHA", kv="8 bits", gpu=192)
    config = PRESETS["Llama 2 70B"].config
    held = kv_cache_bytes(32, 8192, 80, 64, 128, 1) / 2**30
    assert f"cache of 32 × 8,192 tokens {held:.3g} GiB" in live.text
    assert f"Weights {weight_bytes(config) / 2**30:.1f} GiB" in live.text
    assert "does not fit in 192 GiB" in live.text
    left = 192 * 2**30 - weight_bytes(config)
    assert f"At most {left // kv_cache_bytes(1, 8192, 80, 64, 128, 1)} such" in live.text


def test_decoding_states_both_factors(all_widgets):
    live = all_widgets["decoding"]
    live.set(length=512)
    fewer = next_token_cost(TINY, 512, cached=False).flops / next_token_cost(TINY, 512).flops
    assert f"{fewer:.0f} times fewer operations with the cache, 10.0 times faster" in live.text


def test_the_story_of_the_blocks_shows_what_it_says(all_widgets):
    live = all_widgets["block_table"]
    texts = []
    for event in range(live.controls["event"].max + 1):
        live.set(event=event)
        texts.append(live.text)
        used, reserved = map(int, re.findall(r"(\d+) of (\d+) reserved", live.text)[0])
        assert used <= reserved <= 24 * 4
    story = " ".join(texts)
    for what in ("forks from", "copied a shared block first", "found in the cache", "must wait", "is done"):
        assert what in story


def test_heads_names_the_kind(all_widgets):
    live = all_widgets["heads"]
    for kv_heads, kind in ((6, "MHA"), (3, "GQA"), (1, "MQA")):
        live.set(kv_heads=kv_heads)
        assert live.text.startswith(f"{kind}: 6 query heads share {kv_heads} KV heads")
    assert "Perplexity 9 just pooled, 4.9 after training on" in live.text
