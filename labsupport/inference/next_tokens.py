"""The next token of each request of a step: penalties, then sampling, each by the request's own parameters."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from labsupport.inference.penalties import adjusted_logits
from labsupport.inference.request import Request
from labsupport.inference.sampling import sample_tokens, token_logprobs


def next_tokens(
    logits: Float[Tensor, "samples vocab"], requests: Sequence[Request]
) -> tuple[list[int], list[dict[int, float] | None]]:
    """Tokens, and their log-probabilities where requested: by the model's own logits, without penalties."""
    if not requests:
        return [], []
    params = [request.params for request in requests]
    adjusted = adjusted_logits(
        logits,
        params,
        [request.prompt_token_ids for request in requests],
        [request.output_token_ids for request in requests],
        [request.stop_tokens for request in requests],
    )
    uniforms = [request.next_uniform() if request.params.temperature > 0 else 0.0 for request in requests]
    tokens = sample_tokens(adjusted, params, uniforms).tolist()
    return tokens, token_logprobs(logits, tokens, [each.logprobs for each in params])
