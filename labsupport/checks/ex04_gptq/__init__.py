"""Exercise 4: GPTQ.

The checks assume nothing about the student's grid. Any scale rule in use passes (asymmetric, symmetric with 2^b or
2^b - 1 codes), as do 0.5 to 5 % damping, blocks or none, the inverse updated step by step or factored once, and columns
taken from left to right or in decreasing order of the Hessian's diagonal. What is checked:

- levels: each row and group of the result holds at most 2^bits values;
- where inputs do not correlate (H a multiple of I) no column can compensate for another, so GPTQ is round-to-nearest:
  every weight is on the nearest level of its row and group, at most one step max|w| / (2^(bits-1) - 1) away;
- once columns 1..k-1 are rounded with errors d_i = w_i - q_i, the output error is smallest if the last column is
  w_k + sum_i H_ki d_i / H_kk. Rounding adds noise, but over many rows q_k - w_k has that slope in each d_i;
- the expected output error tr(dW C dWᵀ) under the inputs' true covariance C, compared with that of GPTQ on the coarsest
  grid in use.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex04_gptq.dead_columns import check_dead_columns
from labsupport.checks.ex04_gptq.grid import check_grid
from labsupport.checks.ex04_gptq.held_out_error import check_output_error
from labsupport.checks.ex04_gptq.levels import check_levels
from labsupport.checks.ex04_gptq.update import check_update
from labsupport.checks.ex04_gptq.uses_inputs import check_uses_inputs

__all__ = [
    "EXERCISE",
    "check_dead_columns",
    "check_grid",
    "check_levels",
    "check_output_error",
    "check_update",
    "check_uses_inputs",
]

EXERCISE = Exercise(
    name="ex04_gptq",
    checks=(
        check_levels,
        check_grid,
        check_uses_inputs,
        check_update,
        check_output_error,
        check_dead_columns,
    ),
)
