"""Exercise 3: what grouped-query attention saves, in parameters and in the cache.

Both answers are whole numbers with one right value. With head_dim = hidden_size / num_heads, q_proj and o_proj are
[hidden, hidden], k_proj and v_proj [num_kv_heads * head_dim, hidden]. Heads are drawn as powers of two where a formula
is checked; published models with 71 heads, and sizes beyond 2**53, come last.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex03_mha_vs_gqa.cache import check_cache
from labsupport.checks.ex03_mha_vs_gqa.grouped import check_grouped
from labsupport.checks.ex03_mha_vs_gqa.models import check_models
from labsupport.checks.ex03_mha_vs_gqa.multi_head import check_multi_head

__all__ = ["EXERCISE", "check_cache", "check_grouped", "check_models", "check_multi_head"]

EXERCISE = Exercise(
    name="ex03_mha_vs_gqa",
    checks=(
        check_multi_head,
        check_grouped,
        check_cache,
        check_models,
    ),
)
