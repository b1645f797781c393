from __future__ import annotations

import pytest
import torch

from labsupport.quantization import speed
from labsupport.quantization.speed import speed_table


def test_each_input_has_a_column_of_times_and_one_of_ratios_to_the_first(monkeypatch) -> None:
    given = iter([{"float32": 8.0, "int8": 2.0}, {"float32": 3.0, "int8": 6.0}])
    monkeypatch.setattr(speed, "median_milliseconds", lambda functions, repeats: next(given))
    table = speed_table(
        {"float32": lambda x: x, "int8": lambda x: x}, {"1 row": torch.ones(1), "64 rows": torch.ones(64)}
    )
    assert list(table.columns) == ["ms, 1 row", "speed-up, 1 row", "ms, 64 rows", "speed-up, 64 rows"]
    assert table.loc["int8"].tolist() == [2.0, 4.0, 6.0, 0.5]
    assert table.loc["float32"].tolist() == [8.0, 1.0, 3.0, 1.0]


def test_every_model_sees_every_input_without_gradients() -> None:
    seen: list[tuple[str, int, bool]] = []

    def model(name: str):
        return lambda x: seen.append((name, len(x), torch.is_grad_enabled()))

    speed_table({"a": model("a"), "b": model("b")}, {"one": torch.ones(1), "four": torch.ones(4)}, repeats=1)
    assert set(seen) == {("a", 1, False), ("b", 1, False), ("a", 4, False), ("b", 4, False)}


def test_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="models must hold at least one"):
        speed_table({}, {"one": torch.ones(1)})
