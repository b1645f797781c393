"""Exercise 5: a scheduler for continuous batching.

A case is a number of slots, and requests [step, id, num_tokens]: each is added before that step (steps count from 1).
Then the scheduler steps a fixed number of times, whatever it reports about itself. Each check looks at one property of
what came back, so that a mistake only costs the points of the property that it breaks:

- who: every request gets its tokens, and no more (it does not matter when);
- how many: at most max_num_seqs a step, and as many as there is work for (it does not matter who);
- in which order: first come, first served, and no pauses. Together with how many, this leaves one right schedule, with
  which the later checks compare: a request starts as soon as the requests before it leave a slot free
  (`oracles.right_schedule`).

All arguments are valid and all ids different: the exercise asks for no error handling.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex05_continuous_batching.arrivals import check_arrivals
from labsupport.checks.ex05_continuous_batching.has_unfinished import check_has_unfinished
from labsupport.checks.ex05_continuous_batching.order import check_order
from labsupport.checks.ex05_continuous_batching.refill import check_refill
from labsupport.checks.ex05_continuous_batching.slots import check_slots
from labsupport.checks.ex05_continuous_batching.state import check_state
from labsupport.checks.ex05_continuous_batching.tokens import check_tokens

__all__ = [
    "EXERCISE",
    "check_arrivals",
    "check_has_unfinished",
    "check_order",
    "check_refill",
    "check_slots",
    "check_state",
    "check_tokens",
]

EXERCISE = Exercise(
    name="ex05_continuous_batching",
    checks=(
        check_tokens,
        check_slots,
        check_refill,
        check_order,
        check_arrivals,
        check_has_unfinished,
        check_state,
    ),
)
