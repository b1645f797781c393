"""What a language model is trained on: pairs of a token and the next, from text or from what a teacher writes."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from labsupport.distillation.losses import IGNORE_INDEX, check_range
from labsupport.lm.cache import ConcatCache
from labsupport.lm.generate import sample
from labsupport.lm.model import Llama


def next_token_pairs(
    tokens: Int64[Tensor, "batch time"], lengths: Int64[Tensor, " batch"] | None = None
) -> tuple[Int64[Tensor, "batch time-1"], Int64[Tensor, "batch time-1"]]:
    """(inputs, labels) for a language model: position t reads ``tokens[t]`` and is to predict ``tokens[t + 1]``.

    lengths: how many tokens of each row are text; those after them are padding, labelled -100.

    Raises:
        ValueError: ``tokens`` is not a [batch, time] of at least two tokens, or ``lengths`` does not fit it.
    """
    if tokens.dim() != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must have shape [batch, time] with at least 2 tokens; got {list(tokens.shape)}")
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    if lengths is None:
        return inputs, labels
    if lengths.shape != tokens.shape[:1] or bool((lengths < 1).any()) or bool((lengths > tokens.shape[1]).any()):
        raise ValueError(f"lengths must be {tokens.shape[0]} numbers in 1..{tokens.shape[1]}; got {lengths.tolist()}")
    padding = torch.arange(1, tokens.shape[1], device=tokens.device) >= lengths[:, None]
    return inputs, labels.masked_fill(padding, IGNORE_INDEX)


@torch.no_grad()
def sequence_targets(
    teacher: Llama,
    prompts: Int64[Tensor, "batch prompt"],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    eos_token_id: int | None = None,
) -> tuple[Int64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
    """Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947, section 3.2): the teacher writes the answers,
    the student trains on them as if they were text.

    Returns (inputs, labels); the prompt, and everything after end-of-text, is labelled -100.

    The paper takes the teacher's mode, by beam search; here the text is greedy, or sampled at ``temperature``.

    Raises:
        ValueError: an empty prompt, ``max_tokens`` below 1, or a negative ``temperature``.
    """
    if prompts.dim() != 2 or prompts.shape[1] == 0:
        raise ValueError(f"prompts must have shape [batch, time] with at least one token; got {list(prompts.shape)}")
    check_range("max_tokens", max_tokens, max_tokens >= 1, "at least 1")
    check_range("temperature", temperature, temperature >= 0, "0 or more")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    prompts = prompts.to(teacher.embed_tokens.weight.device)
    was_training = teacher.training
    teacher.eval()
    cache = ConcatCache(teacher.config.num_layers)
    tokens = new = prompts
    for _ in range(max_tokens):
        new = sample(teacher(new, cache)[:, -1], temperature, generator)[:, None]
        tokens = torch.cat((tokens, new), dim=1)
    teacher.train(was_training)
    inputs, labels = tokens[:, :-1], tokens[:, 1:].clone()
    answers = labels[:, prompts.shape[1] - 1 :]
    if eos_token_id is not None:
        ends = answers == eos_token_id
        answers.masked_fill_(
            ends.cumsum(1) - ends.long() > 0, IGNORE_INDEX
        )  # the student learns the end-of-text itself
    labels[:, : prompts.shape[1] - 1] = IGNORE_INDEX
    return inputs, labels
