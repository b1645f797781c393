"""The same text from programs that we did not write: transformers and llama.cpp continue a prompt from a checkpoint."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = {"transformers": ("transformers", "compressed_tensors"), "llama.cpp": ("xllamacpp",)}


def missing_packages(program: str) -> list[str]:
    """What has to be installed before ``program`` ("transformers" or "llama.cpp") can read a checkpoint here."""
    return [package.replace("_", "-") for package in NEEDED[program] if find_spec(package) is None]


def text_from_transformers(folder: Path | str, prompt: str, num_tokens: int) -> str:
    """The most likely continuation by transformers, which reads tokenizer and weights from ``folder``.

    Raises:
        ImportError: transformers, or compressed-tensors for a quantized checkpoint, is not installed.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig
    from transformers.utils import logging

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.float32}
    if getattr(AutoConfig.from_pretrained(folder), "quantization_config", None):
        # without it, transformers 5 expects zero points that are not packed, and refuses asymmetric grids
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    bars = logging.is_progress_bar_enabled()
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # other bars, and that an option was given
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    if bars:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    tokens = torch.tensor([tokenizer.encode(prompt)])
    mask = torch.ones_like(tokens)
    made = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens, pad_token_id=0)
    return tokenizer.decode(made[0, tokens.shape[1] :])


def text_from_llama_cpp(file: Path | str, prompt: str, num_tokens: int) -> str:
    """The most likely continuation by llama.cpp, which reads everything from the GGUF file.

    Raises:
        ImportError: the package xllamacpp is not installed.
        RuntimeError: llama.cpp refuses the file or the prompt.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_gpu_layers, params.verbosity = 1, 0, 0
    params.n_ctx = 4 * (len(prompt.encode()) + num_tokens)  # a token is a byte at least, in all our tokenizers
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "cache_prompt": False}
    )
    if "choices" not in answer:
        raise RuntimeError(f"llama.cpp: {answer}")
    return answer["choices"][0]["text"]
