"""Where the numbers beside the points of a picture go, so that none covers another or a point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Up and to the right first, straight down last.
DIRECTIONS = ((1, 1), (1, 0), (0, 1), (1, -1), (-1, 1), (-1, -1), (-1, 0), (0, -1))


def number_offsets(
    points: Float[np.ndarray, "n 2"], widths: Sequence[float], height: float, point: float
) -> Float[np.ndarray, "n 2"]:
    """For each point, how far from it the centre of its number goes; all lengths in the same unit, such as pixels.

    The nearest free place is taken, point after point: in eight directions at a distance that clears the point, then
    farther away. widths, height: of the numbers. point: the radius that each point keeps free.
    """
    taken: list[tuple[float, float, float, float]] = []
    offsets = np.zeros_like(points, dtype=float)
    for i, (centre, width) in enumerate(zip(points, widths, strict=True)):
        for distance in range(1, 2 * len(points) + 2):
            for right, up in DIRECTIONS:
                offset = distance * np.array([right * (point + width / 2), up * (point + height / 2)])
                left, low = centre + offset - np.array([width, height]) / 2
                box = (left, low, left + width, low + height)
                if not any(_overlap(box, other) for other in taken) and not _covers(box, points, point):
                    break
            else:
                continue
            break
        offsets[i] = offset
        taken.append(box)
    return offsets


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _covers(box: tuple[float, ...], points: Float[np.ndarray, "n 2"], radius: float) -> bool:
    """Whether a point, as a square of this radius, lies under the box."""
    return any(_overlap(box, (x - radius, y - radius, x + radius, y + radius)) for x, y in points)
