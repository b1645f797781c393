"""Log-probabilities of a prompt's own tokens: how an evaluator asks a server how likely a given text is.

The logits after token ``i`` tell how likely token ``i + 1`` was. The first token follows nothing, so it has none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.inference.plan import Plan
from labsupport.inference.sampling import token_logprobs
from labsupport.numerics.devices import from_host


def score_prompts(plan: Plan, logits: Float[Tensor, "positions vocab"]) -> Float[Tensor, "samples vocab"]:
    """Store the log-probabilities of scored prompts in their requests. Returns the logits that pick new tokens.

    A prompt may be read in several chunks, and again after a preemption: each place is then written once more.
    """
    rows: list[int] = []
    row = 0
    for each in plan.scheduled:
        prompt, first = each.request.prompt_token_ids, row
        row += len(each.token_ids) if each.scored else each.samples
        if each.samples:
            rows.append(row - 1)
        if each.scored:
            following = prompt[each.start + 1 : each.start + 1 + len(each.token_ids)]
            counts = [each.request.params.prompt_logprobs] * len(following)
            values = token_logprobs(logits[first : first + len(following)], following, counts)
            each.request.prompt_logprobs[each.start + 1 : each.start + 1 + len(following)] = values
    return logits if len(rows) == len(logits) else logits[from_host(rows, logits.device, torch.int64)]
