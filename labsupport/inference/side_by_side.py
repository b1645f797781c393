"""The same prompts through every engine that is installed, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
import torch

from labsupport.inference.adapters import ADAPTERS, Adapter
from labsupport.lm import LanguageModel


def engines_side_by_side(
    lm: LanguageModel, prompts: Sequence[list[int]], wanted: Sequence[int], batch_size: int
) -> pd.DataFrame:
    """One row an engine of `ADAPTERS`: greedy, exactly ``wanted[i]`` new tokens for ``prompts[i]``.

    Columns: "tokens/s" (new tokens, prompts included in the time), "same text as ours", "note" (why it cannot run).
    """
    rows: dict[str, dict[str, object]] = {}
    ours: list[str] | None = None
    for adapter in ADAPTERS:
        engine, reason = started(adapter, lm, batch_size)
        if engine is None:
            rows[adapter.name] = {"note": reason}
            continue
        engine.generate(prompts[:2], wanted[:2])  # to warm up
        start = time.perf_counter()
        answers = engine.generate(prompts, wanted)
        seconds = time.perf_counter() - start
        texts = [answer.text for answer in answers]
        ours = ours or texts
        same = sum(a == b for a, b in zip(texts, ours, strict=True))
        rows[adapter.name] = {
            "tokens/s": sum(answer.num_tokens for answer in answers) / seconds,
            "same text as ours": f"{same} of {len(texts)}",
            "note": "",
        }
    return pd.DataFrame(rows).T.fillna("")


def started(adapter: type[Adapter], lm: LanguageModel, batch_size: int) -> tuple[Adapter | None, str]:
    """The engine with ``lm`` loaded; or None, and why it cannot run here."""
    if reason := adapter.missing():
        return None, reason
    try:
        return adapter(lm, batch_size=batch_size, threads=torch.get_num_threads()), ""
    except ValueError as error:
        return None, f"cannot run {lm.name}: {error}"
