"""The course's one protocol of measurement: which tokens every chapter calibrates on, and which it evaluates on.

Perplexities can be compared only if they were measured on the same windows of one text, so no chapter cuts its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from labsupport.lm.folder import LanguageModel
from labsupport.lm.text import corpus

SEQ_LEN = 512
CALIBRATION_WINDOWS = 16
EVALUATION_WINDOWS = 8


def evaluation_tokens(
    lm: LanguageModel, windows: int = EVALUATION_WINDOWS, seq_len: int = SEQ_LEN
) -> Int64[Tensor, " n"]:
    """The first ``windows`` windows of the evaluation text in ``lm``'s tokens, 1-D, as `perplexity` takes them.

    Raises:
        ValueError: ``windows`` or ``seq_len`` is below 1, or the text is shorter than what was asked for.
    """
    return _first_tokens(lm, "evaluation", windows, seq_len)


def calibration_windows(
    lm: LanguageModel, windows: int = CALIBRATION_WINDOWS, seq_len: int = SEQ_LEN
) -> list[Int64[Tensor, " seq_len"]]:
    """The first ``windows`` windows of the calibration text in ``lm``'s tokens, as `quantize_model` takes them.

    Raises:
        ValueError: as `evaluation_tokens`.
    """
    return list(_first_tokens(lm, "calibration", windows, seq_len).split(seq_len))


def _first_tokens(
    lm: LanguageModel, part: Literal["calibration", "evaluation"], windows: int, seq_len: int
) -> Int64[Tensor, " n"]:
    for name, value in (("windows", windows), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    tokens = torch.tensor(lm.tokenizer.encode(corpus(part)), dtype=torch.int64)
    if len(tokens) < windows * seq_len:
        raise ValueError(f"windows * seq_len must be at most {len(tokens)}, the {part} text; got {windows * seq_len}")
    return tokens[: windows * seq_len]
