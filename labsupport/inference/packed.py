"""All tokens of a step in one row, decodes and prompt chunks alike: nothing is padded.

Selective batching (Orca: Yu et al., OSDI 2022, section 3.2): embedding, norms, projections and MLP treat every token
alike, so they see [1, tokens] and read each weight once a step. Only attention must know whose token is whose; there
the row is cut up into the sequences that decode, one token each and together, and each chunk by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.kvcache import PagedKVCache


class PackedBatch:
    """A `labsupport.lm.Cache` for one pass: ``model(batch.tokens, batch)``.

    Args:
        decodes: id and token of the sequences that bring one token; they come first in ``tokens``.
        chunks: id and tokens of the others, in order.

    Raises:
        ValueError: there is neither, or an id twice or unknown.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        decodes: Sequence[tuple[Hashable, int]],
        chunks: Sequence[tuple[Hashable, Sequence[int]]] = (),
    ) -> None:
        parts = [[(seq_id, [token]) for seq_id, token in decodes]] if decodes else []
        parts += [[chunk] for chunk in chunks]  # type: ignore[list-item]
        if not parts:
            raise ValueError("decodes and chunks must not both be empty")
        self.num_layers = cache.num_layers
        self._parts = [cache.batch([seq_id for seq_id, _ in part]) for part in parts]
        fed = [batch.feed([tokens for _, tokens in part]) for batch, part in zip(self._parts, parts, strict=True)]
        self._shapes = [tokens.shape for tokens in fed]
        self.tokens: Int64[Tensor, "1 tokens"] = torch.cat([tokens.flatten() for tokens in fed])[None]

    def positions(self, batch: int, time: int) -> Int64[Tensor, "1 tokens"]:
        """
        Raises:
            ValueError: the tokens are not ``self.tokens``.
            CacheFull: too few blocks are free.
        """
        if (batch, time) != tuple(self.tokens.shape):
            raise ValueError(f"tokens must have shape {list(self.tokens.shape)}; got {[batch, time]}")
        each = [part.positions(*shape) for part, shape in zip(self._parts, self._shapes, strict=True)]
        return torch.cat([positions.flatten() for positions in each])[None]

    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "1 num_heads tokens head_dim"],
        key: Float[Tensor, "1 num_kv_heads tokens head_dim"],
        value: Float[Tensor, "1 num_kv_heads tokens head_dim"],
    ) -> Float[Tensor, "1 num_heads tokens head_dim"]:
        """Each token attends to its own sequence."""
        contexts, start = [], 0
        for part, (rows, time) in zip(self._parts, self._shapes, strict=True):
            end = start + rows * time
            if time == 1:  # [1, heads, rows, head_dim] <-> [rows, heads, 1, head_dim]
                own = [each[:, :, start:end].transpose(0, 2) for each in (query, key, value)]
                contexts.append(part.attend(layer_index, *own).transpose(0, 2))
            else:
                own = [each[:, :, start:end] for each in (query, key, value)]
                contexts.append(part.attend(layer_index, *own))
            start = end
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=2)

    def advance(self, time: int) -> None:
        for part, shape in zip(self._parts, self._shapes, strict=True):
            part.advance(shape[1])
