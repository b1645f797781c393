"""Exercise 1: symmetric int8 quantization.

With scale s = max|x| / 127 and codes q = round(x / s), every |x / s| is at most 127, so rounding is the only error:
|x - q s| <= s / 2. All bounds follow from that; their slack covers float32 rounding only (a relative error of 2^-24 per
operation, times 127 for a code). Ties may be rounded either way.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex01_int8_symmetric.axis import check_axis
from labsupport.checks.ex01_int8_symmetric.codes import check_codes
from labsupport.checks.ex01_int8_symmetric.dequantize import check_dequantize
from labsupport.checks.ex01_int8_symmetric.edge_cases import check_edge_cases
from labsupport.checks.ex01_int8_symmetric.round_trip import check_round_trip
from labsupport.checks.ex01_int8_symmetric.scale import check_scale

__all__ = [
    "EXERCISE",
    "check_axis",
    "check_codes",
    "check_dequantize",
    "check_edge_cases",
    "check_round_trip",
    "check_scale",
]

EXERCISE = Exercise(
    name="ex01_int8_symmetric",
    checks=(
        check_scale,
        check_codes,
        check_axis,
        check_dequantize,
        check_round_trip,
        check_edge_cases,
    ),
)
