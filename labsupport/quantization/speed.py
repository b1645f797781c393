"""A table of speed: the same inputs through several versions of a layer or model, the first of which sets the pace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labsupport.timing import median_milliseconds

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def speed_table(
    models: Mapping[str, Callable[[Tensor], object]], inputs: Mapping[str, Tensor], repeats: int = 9
) -> pd.DataFrame:
    """A row for each model, and for each input its milliseconds and how many times as fast as the first model it is.

    Median of ``repeats`` calls that take turns, after one to warm up; on as many threads as torch uses now.

    Raises:
        ValueError: no model, or ``repeats`` is below 1.
    """
    import pandas as pd

    if not models:
        raise ValueError("models must hold at least one, the first being what the others are compared with")
    columns: dict[str, dict[str, float]] = {}
    for name, x in inputs.items():
        times = median_milliseconds({key: partial(model, x) for key, model in models.items()}, repeats)
        first = next(iter(times.values()))
        columns[f"ms, {name}"] = times
        columns[f"speed-up, {name}"] = {key: first / ms for key, ms in times.items()}
    return pd.DataFrame(columns)
