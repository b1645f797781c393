"""Pictures without controls: shown at all, with a line of text that says what their table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from labsupport.widgets.inference import steps_under_roof
from labsupport.widgets.serving import stack_picture, tradeoff_picture


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Draw, and return the line of text of the one picture that is displayed."""

    def draw(picture: Callable[..., None], *arguments: Any) -> str:
        bundles: list[dict[str, Any]] = []
        monkeypatch.setattr("IPython.display.display", lambda bundle, **_: bundles.append(bundle))
        picture(*arguments)
        (bundle,) = bundles
        assert bundle["image/png"]
        return bundle["text/plain"]

    return draw


def test_the_stack(shown: Callable[..., str]) -> None:
    assert "Redis" in shown(stack_picture)


def test_the_tradeoff_tells_each_row(shown: Callable[..., str]) -> None:
    rows = {"memory, MB": [10.0, 2.0], "perplexity": [4.0, 4.5], "tokens/s, eight": [100.0, 50.0]}
    told = shown(tradeoff_picture, pd.DataFrame(rows, index=["whole", "small"]))
    assert told == "whole: 10 MB, perplexity 4, 100 tokens/s; small: 2 MB, perplexity 4.5, 50 tokens/s"


@pytest.mark.parametrize("models", [1, 2])
def test_the_roofs_tell_each_share(shown: Callable[..., str], models: int) -> None:
    table = pd.DataFrame(
        {"operations a byte": [0.5, 100.0], "GFLOP/s": [2.0, 90.0], "share of the roof": [0.2, 0.45],
         "memory, GB/s": [20.0, 20.0], "arithmetic, GFLOP/s": [200.0, 200.0]},
        index=["decode, batch 1", "prefill, 256 tokens"],
    )  # fmt: skip
    told = shown(steps_under_roof, {f"model {number}": table for number in range(models)})
    assert told.count("decode, batch 1: 20% of the roof") == told.count("256 tokens: 45% of the roof") == models
