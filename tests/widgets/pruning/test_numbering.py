"""Numbers beside points: none covers another, or a point, and each stays near its own."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labsupport.widgets.pruning.numbering import number_offsets

places = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200)), min_size=1, max_size=12)


def boxes(points: np.ndarray, offsets: np.ndarray, widths: list[float], height: float) -> list[tuple[float, ...]]:
    centres = points + offsets
    return [(x - w / 2, y - height / 2, x + w / 2, y + height / 2) for (x, y), w in zip(centres, widths, strict=True)]


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@given(places)
def test_no_number_covers_another_or_a_point(places: list[tuple[int, int]]) -> None:
    points = np.array(places, dtype=float)
    widths = [10.0 if i < 9 else 20.0 for i in range(len(points))]
    drawn = boxes(points, number_offsets(points, widths, height=14, point=6), widths, 14)
    assert all(apart(a, b) for a, b in combinations(drawn, 2))
    assert all(apart(box, (x - 6, y - 6, x + 6, y + 6)) for box in drawn for x, y in points)


def test_alone_a_number_is_right_beside_its_point() -> None:
    offset = number_offsets(np.array([[50.0, 50.0]]), [10.0], height=14, point=6)[0]
    assert 0 < np.hypot(*offset) < 20 and (offset > 0).all()


def test_three_points_in_one_place_have_three_places_nearby() -> None:
    offsets = number_offsets(np.full((3, 2), 50.0), [10.0] * 3, height=14, point=6)
    assert len({tuple(offset) for offset in offsets.round(6).tolist()}) == 3
    assert np.hypot(*offsets.T).max() < 30
