"""Making tokens more or less likely before one is picked: penalties for what was said, biases, a least length.

- repetition penalty (CTRL: Keskar et al. 2019, arXiv 1909.05858, section 4.1): the logit of each token of the prompt or
  the output is divided by it if it is positive, and multiplied if it is negative;
- presence and frequency penalty (OpenAI's API): subtracted from the logit of each token of the output, once, and once
  for each time it occurs;
- ``logit_bias``: added to the logits of given tokens; -100 in effect forbids one, 100 forces it;
- ``min_tokens``: until there are so many, what would end the text is impossible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.inference.sampling import SamplingParams
from labsupport.numerics.devices import from_host


def adjusted_logits(
    logits: Float[Tensor, "batch vocab"],
    params: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    endings: Sequence[Collection[int]],
) -> Float[Tensor, "batch vocab"]:
    """The logits that tokens are picked from: a copy if any row is changed, else ``logits`` itself.

    Args:
        prompts, outputs: the tokens of each row's request so far.
        endings: the tokens that would end each row's text.
    """
    changed = [row for row, each in enumerate(params) if each.adjusts(len(outputs[row]))]
    if not changed:
        return logits
    logits = logits.clone()
    for row in changed:
        _adjust(logits[row], params[row], prompts[row], outputs[row], endings[row])
    return logits


def _adjust(
    logits: Float[Tensor, " vocab"],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    endings: Collection[int],
) -> None:
    """One row, in place."""
    if params.repetition_penalty != 1:
        seen = from_host([*{*prompt, *output}], logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        said = Counter(output)
        times = from_host(list(said.values()), logits.device)
        logits[from_host(list(said), logits.device)] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.biases:
        logits[token] += bias
    possible = [token for token in endings if 0 <= token < len(logits)]
    if len(output) < params.min_tokens and possible:
        logits[from_host(possible, logits.device)] = -torch.inf
