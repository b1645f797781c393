"""Which token comes next: the parameters of one request, and a sampler for a batch in which each row has its own.

After its temperature, a row is filtered by top-k and top-p (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751),
and a random number of its own picks from what is left. So a seeded request draws the same tokens whatever else is in
the batch, and a preempted request continues as if nothing had happened.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.numerics.devices import from_host

_LARGEST_UNIFORM = 1 - 2**-24  # below 1 also in float32
_NOT_A_NUMBER = -1  # in place of a token, where the model gave NaN
_FIRST_TRY = 256  # a nucleus is seldom larger, and finding the largest 256 is faster than sorting all


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Attributes:
        max_tokens: the largest number of new tokens; 0 gives none.
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: only the k most likely tokens (and those as likely as the last of them); 0: all.
        top_p: only the most likely tokens that together have at least this probability; 1: all.
        seed: the same seed gives the same tokens; None: different tokens each time.
        stop: one or several strings; the text ends before the first that occurs.
        stop_token_ids: the text ends before any of these tokens, which is then the last of the result's ``token_ids``.
        ignore_eos: do not end at the tokenizer's end-of-text token.
        logprobs: also give the log-probabilities of the chosen token and of this many most likely ones, before
            temperature, filters and penalties; None: no log-probabilities.
        prompt_logprobs: the same for the tokens of the prompt, which is then read without the prefix cache.
        repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see penalties.py; 1, 0, 0 and None change
            nothing. ``logit_bias`` maps token ids to numbers, and is kept as pairs.
        min_tokens: the text does not end, by a token or a stop string, before it has so many.

    Raises:
        ValueError: a value is out of range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = None
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "min_tokens"):
            self._set(name, _integer(name, getattr(self, name)))
        for name in ("seed", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._set(name, _integer(name, getattr(self, name), "an integer of 0 or more, or None"))
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature must be a number of 0 or more; got {self.temperature!r}")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must be a number above 0 and at most 1; got {self.top_p!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(each, str) and each for each in stop):
            raise ValueError(f"stop must be strings that are not empty; got {self.stop!r}")
        self._set("stop", stop)
        allowed = "integers of 0 or more"
        self._set("stop_token_ids", tuple(_integer("stop_token_ids", each, allowed) for each in self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be True or False; got {self.ignore_eos!r}")
        if not (_is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf):
            raise ValueError(f"repetition_penalty must be a number above 0; got {self.repetition_penalty!r}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not (_is_number(getattr(self, name)) and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a number; got {getattr(self, name)!r}")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens = {self.max_tokens}; got {self.min_tokens}")
        if self.logit_bias is not None:
            self._set("logit_bias", _biases(self.logit_bias))

    def adjusts(self, num_output_tokens: int) -> bool:
        """Whether penalties.py changes the logits of a request that has so many new tokens."""
        spoken = num_output_tokens > 0 and bool(self.presence_penalty or self.frequency_penalty)
        return spoken or self.repetition_penalty != 1 or bool(self.logit_bias) or num_output_tokens < self.min_tokens

    @property
    def biases(self) -> Sequence[tuple[int, float]]:
        """``logit_bias`` as it is kept."""
        return cast(Sequence[tuple[int, float]], self.logit_bias or ())

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def sample_tokens(
    logits: Float[Tensor, "batch vocab"], params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> Int64[Tensor, " batch"]:
    """One token for each row. ``uniforms``: a number in [0, 1) for each row, unused by greedy rows.

    The number is looked up in the cumulative distribution over the tokens in the order of their ids. In the order of
    their probabilities, rounding could swap two neighbours and so give another token.

    The result is on the CPU. The host waits for a GPU once, or twice where a nucleus is looked for.

    Raises:
        ValueError: the numbers of rows differ, or the model gave NaN.
    """
    if not len(logits) == len(params) == len(uniforms):
        raise ValueError(
            f"params and uniforms must be {len(logits)} (one for each row of logits); "
            f"got {len(params)} and {len(uniforms)}"
        )
    highest, tokens = logits.max(dim=-1)
    tokens = tokens.masked_fill(highest.isnan(), _NOT_A_NUMBER)
    sampled = [row for row, each in enumerate(params) if each.temperature > 0]
    if sampled:
        _sample_rows(tokens, logits, highest, sampled, params, uniforms)
    tokens = tokens.cpu()
    if (tokens == _NOT_A_NUMBER).any():
        raise ValueError("logits must be numbers; got NaN")
    return tokens


def _sample_rows(
    tokens: Int64[Tensor, " batch"], logits: Float[Tensor, "batch vocab"], highest: Float[Tensor, " batch"],
    sampled: Sequence[int], params: Sequence[SamplingParams], uniforms: Sequence[float],
) -> None:  # fmt: skip
    """The tokens of the rows that are not greedy, in place."""
    device = logits.device
    rows = from_host(sampled, device)
    own = [params[row] for row in sampled]
    temperature = from_host([[max(each.temperature, 1e-6)] for each in own], device)
    scaled = (logits[rows] - highest[rows, None]) / temperature
    filtered = [index for index, each in enumerate(own) if each.top_k or each.top_p < 1]
    if filtered:
        chosen = from_host(filtered, device)
        part = scaled[chosen]
        lowest = lowest_kept(part, [own[index].top_k for index in filtered], [own[index].top_p for index in filtered])
        scaled[chosen] = part.masked_fill(part < lowest[:, None], -torch.inf)
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    point = from_host([[min(uniforms[row], _LARGEST_UNIFORM)] for row in sampled], device)
    # the first token whose cumulative probability is above the point: never one of probability 0
    picked = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)[:, 0]
    tokens[rows] = picked.clamp(max=logits.shape[1] - 1).masked_fill(highest[rows].isnan(), _NOT_A_NUMBER)


def lowest_kept(
    logits: Float[Tensor, "batch vocab"], top_k: Sequence[int], top_p: Sequence[float]
) -> Float[Tensor, " batch"]:
    """The smallest logit that passes each row's top-k, then its top-p. Equal logits are kept or cut together."""
    vocab = logits.shape[1]
    ks = from_host([[k if 0 < k < vocab else vocab] for k in top_k], logits.device)
    ps = from_host([[p] for p in top_p], logits.device)
    limited = [k for k in top_k if 0 < k < vocab]
    width = min(vocab, max([_FIRST_TRY, *limited]))
    while True:
        values = logits.topk(width, dim=-1).values
        in_k = torch.arange(width, device=logits.device) < ks
        total = torch.where(
            ks < vocab, values.masked_fill(~in_k, -torch.inf).logsumexp(-1, True), logits.logsumexp(-1, True)
        )
        probability = (values - total).exp()
        before = probability.cumsum(-1) - probability
        keep = in_k & ((before < ps) | (ps >= 1))
        keep[:, 0] = True
        if width == vocab or not (keep.all(dim=-1) & (ks[:, 0] == vocab)).any():
            return values.gather(1, keep.sum(dim=-1, keepdim=True) - 1)[:, 0]
        width = vocab


def token_logprobs(
    logits: Float[Tensor, "batch vocab"], tokens: Sequence[int], counts: Sequence[int | None]
) -> list[dict[int, float] | None]:
    """For each row, token id -> log-probability: the ``count`` most likely ones, sorted, and the row's own token.

    None if the row's count is None.
    """
    wanted = [row for row, count in enumerate(counts) if count is not None]
    result: list[dict[int, float] | None] = [None] * len(counts)
    if not wanted:
        return result
    logprobs = logits[from_host(wanted, logits.device)].log_softmax(dim=-1)
    most = min(max(counts[row] or 0 for row in wanted), logits.shape[1])
    values, ids = logprobs.topk(most, dim=-1)
    own = logprobs.gather(1, from_host([[tokens[row]] for row in wanted], logits.device))
    # In one piece, for the host to wait once: float32 holds every id below 2**24.
    together = torch.cat((own, values, ids.float()), dim=1).tolist()
    for row, (value, *top) in zip(wanted, together, strict=True):
        count = min(counts[row] or 0, most)
        result[row] = dict(zip(map(int, top[most : most + count]), top[:count], strict=True))
        result[row].setdefault(tokens[row], value)  # type: ignore[union-attr]
    return result


def _integer(name: str, value: object, allowed: str = "an integer of 0 or more") -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be {allowed}; got {value!r}") from None
    if number < 0 or isinstance(value, bool):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return number


def _biases(given: Mapping[int, float] | Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else [tuple(pair) for pair in given]
    if not all(_is_number(bias) and math.isfinite(bias) for _, bias in pairs):
        raise ValueError(f"logit_bias must map token ids to numbers; got {given!r:.60}")
    return tuple((_integer("logit_bias", token, "a map of token ids to numbers"), float(bias)) for token, bias in pairs)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
