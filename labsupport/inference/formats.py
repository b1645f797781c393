"""The same requests with the weights of one model in several formats: bytes, perplexity, tokens per second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd

from labsupport.inference.engine import LLMEngine
from labsupport.inference.workload import tokens_per_second, workload
from labsupport.lm import LanguageModel, calibration_windows, evaluation_tokens, perplexity
from labsupport.quantization import quantize_model


def serve_formats(
    lm: LanguageModel, formats: Mapping[str, Mapping[str, Any] | None], slots: tuple[int, ...] = (1, 8)
) -> pd.DataFrame:
    """One row a format: "perplexity", "MB" of weights, and "tokens/s, N at a time" for each N of ``slots``.

    formats: options of `quantize_model` by name, None for float32; output heads of quantized models have 8 bits.
    Four requests for each slot: prompts of 16 to 128 tokens, answers of 8 to 64; prompts are part of the time.
    """
    windows, held_out = calibration_windows(lm), evaluation_tokens(lm)
    prompts, wanted = workload(lm, 4 * max(slots), prompt=(16, 128), output=(8, 64), seed=10)
    rows = {}
    for name, options in formats.items():
        model: Any = lm.model
        if options is not None:
            model = quantize_model(lm.model, windows, head_bits=8, progress=False, **options)
        report = getattr(model, "quantization_report", None)
        stored = report.bytes_after if report else sum(p.nbytes for p in model.parameters())
        rows[name] = {"perplexity": perplexity(model, held_out), "MB": stored / 1e6}
        for count in slots:
            engine = LLMEngine(dataclasses.replace(lm, model=model), max_num_seqs=count)
            speed = tokens_per_second(engine, prompts[: 4 * count], wanted[: 4 * count])
            rows[name][f"tokens/s, {count} at a time"] = speed
    return pd.DataFrame(rows).T
