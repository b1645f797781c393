"""The table of families in benchmarks/checkpoints.py, and what its other tables need, too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from exported import WINDOWS, ascii_tokenizer, dequantized, in_transformers, logits  # noqa: E402
from families import FAMILIES, hugging_face  # noqa: E402
from llama_cpp import LlamaCpp  # noqa: E402

from labsupport.checkpoints import save  # noqa: E402
from labsupport.inference import LLMEngine, SamplingParams  # noqa: E402
from labsupport.lm import LanguageModel, Llama, load_lm  # noqa: E402
from labsupport.pruning import prune_model  # noqa: E402
from labsupport.quantization import quantize_model  # noqa: E402

COUNT = 16  # greedy tokens


def families(root: Path) -> pd.DataFrame:
    rows = {}
    for name in FAMILIES:
        rows[name] = row = family(name, Folder(root / name.replace(" ", "-")))
        print(name, row, flush=True)
    return pd.DataFrame(rows).T


def family(name: str, folder: Folder) -> dict[str, str]:
    theirs = hugging_face(name)
    source = folder.root / "source"
    theirs.save_pretrained(source)
    ascii_tokenizer().tokenizer.save(str(source / "tokenizer.json"))
    lm = load_lm(source, verbose=False)
    row = {"load": f"{difference(logits(theirs), logits(lm.model)):.1e}"}
    dequantize = {"quantization_config": transformers().CompressedTensorsConfig(dequantize=True)}
    for label, method in (("GPTQ", "gptq"), ("AWQ", "awq"), ("W8A8", "int8_dynamic")):
        small: Any = quantize_model(lm.model, WINDOWS, method, group_size=32, progress=False)
        path = folder.save(replace(lm, model=small), "compressed-tensors", dtype=torch.float32)
        row[label] = f"{difference(logits(in_transformers(path, **dequantize)), logits(dequantized(small))):.1e}"
    row["W8A8"] += f" ({difference(logits(in_transformers(path)), logits(small)):.0e})"
    sparse: Any = prune_model(lm.model, WINDOWS, "wanda", pattern="2:4", progress=False)
    path = folder.save(replace(lm, model=sparse), "huggingface")
    row["wanda"] = f"{difference(logits(in_transformers(path)), logits(sparse)):.1e}"
    prompts = [list(range(1, 16)), [5, 99, 7]]
    answers = LLMEngine(lm, max_num_seqs=2).generate(
        prompts, SamplingParams(max_tokens=COUNT, temperature=0.0, ignore_eos=True)
    )
    pairs = zip(answers, prompts, strict=True)
    row["engine"] = f"{min(same(each.token_ids, greedy(of_model(theirs), prompt)) for each, prompt in pairs)}/{COUNT}"
    row["GGUF"] = in_gguf(lm, folder)
    return row


def in_gguf(lm: LanguageModel, folder: Folder) -> str:
    star = ""
    try:
        path = folder.save(lm, "gguf", kind="F32")
    except ValueError:
        config, star = lm.model.config, "*"
        window = None if config.sliding_window is None else 256
        scaling = config.rope_scaling and replace(config.rope_scaling, original_positions=256)
        model = Llama(replace(config, sliding_window=window, max_positions=512, rope_scaling=scaling)).eval()
        model.load_state_dict(lm.model.state_dict())
        lm = replace(lm, model=model)
        path = folder.save(lm, "gguf", kind="F32")
    tokens = list(range(1, 60))
    return f"{difference(in_llama(path)(tokens), logits(lm.model, torch.tensor([tokens]))[0]):.1e}{star}"


def in_llama(path: Path) -> Callable[[list[int]], Tensor]:
    program = LlamaCpp(path / "model.gguf")
    return program.logits


def difference(theirs: Tensor, wanted: Tensor) -> float:
    return float((theirs.log_softmax(-1) - wanted.log_softmax(-1)).abs().max())


def greedy(step: Callable[[list[int]], Tensor], prompt: list[int]) -> list[int]:
    """``step``: tokens -> logits of the next."""
    tokens = list(prompt)
    for _ in range(COUNT):
        tokens.append(int(step(tokens).argmax()))
    return tokens[len(prompt) :]


def same(theirs: list[int], wanted: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(theirs, wanted, strict=True)) if pair[0] != pair[1]), COUNT)


def of_model(model: Any) -> Callable[[list[int]], Tensor]:
    return lambda tokens: logits(model, torch.tensor([tokens]))[0, -1]


class Folder:
    """Saves under names of their own, in a folder that goes away."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def save(self, lm: LanguageModel, format: str, **options: Any) -> Path:
        self.count += 1
        path = self.root / str(self.count)
        save(lm, path, format, **options)
        return path


def transformers() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
