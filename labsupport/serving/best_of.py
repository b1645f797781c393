"""``best_of``: more answers are generated than are given, and the most likely ones are kept."""

from __future__ import annotations

from collections.abc import Sequence

from labsupport.inference.request import RequestOutput


def best_outputs(outputs: Sequence[RequestOutput], generated: int, kept: int) -> list[int]:
    """Indices of the ``kept`` best of each prompt's ``generated`` outputs, the best first.

    Best is the highest mean log-probability of a token, as OpenAI has it: a sum would prefer short answers.
    """
    if kept == generated:
        return list(range(len(outputs)))
    best = []
    for first in range(0, len(outputs), generated):
        ranked = sorted(range(first, first + generated), key=lambda index: -mean_logprob(outputs[index]))
        best += ranked[:kept]
    return best


def mean_logprob(output: RequestOutput) -> float:
    """Of the tokens that were taken; 0 if there are none."""
    if not output.token_ids or output.logprobs is None:
        return 0.0
    values = [each[token] for token, each in zip(output.token_ids, output.logprobs, strict=True)]
    return sum(values) / len(values)
