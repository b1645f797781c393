"""Exercise 2: how large a KV cache is, and how many sequences fit.

Both answers are whole numbers with one right value: products, and a quotient rounded down. Sizes are drawn as odd
numbers that differ from each other, so that a forgotten factor is noticed and can be named.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex02_kv_cache_size.batch_size import check_batch_size
from labsupport.checks.ex02_kv_cache_size.default import check_default
from labsupport.checks.ex02_kv_cache_size.exact import check_exact
from labsupport.checks.ex02_kv_cache_size.limits import check_limits
from labsupport.checks.ex02_kv_cache_size.total import check_bytes

__all__ = ["EXERCISE", "check_batch_size", "check_bytes", "check_default", "check_exact", "check_limits"]

EXERCISE = Exercise(
    name="ex02_kv_cache_size",
    checks=(
        check_bytes,
        check_default,
        check_exact,
        check_batch_size,
        check_limits,
    ),
)
