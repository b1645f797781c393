"""The model card (README.md) of a written checkpoint: what it is, from what, how it was made, how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labsupport.lm import LanguageModel

_VLLM = "`vllm serve {folder}`"
_TRANSFORMERS = '`AutoModelForCausalLM.from_pretrained("{folder}")`'
_OURS = '`load_lm("{folder}")`, `labsupport serve --model {folder}`'
LOADED_BY = {
    "labsupport": {"labsupport": _OURS},
    "huggingface": {"transformers": _TRANSFORMERS, "vLLM": _VLLM, "labsupport": _OURS},
    "compressed-tensors": {
        "vLLM": _VLLM, "transformers (with the package compressed-tensors)": _TRANSFORMERS, "labsupport": _OURS,
    },
    "gptq": {
        "vLLM (symmetric grids)": _VLLM, "transformers (with the package gptqmodel)": _TRANSFORMERS,
        "labsupport": _OURS,
    },
    "awq": {"vLLM": _VLLM, "transformers (with the package gptqmodel)": _TRANSFORMERS, "labsupport": _OURS},
    "gguf": {"llama.cpp": "`llama-cli -m {folder}/model.gguf`", "Ollama": '`FROM {folder}/model.gguf` in a Modelfile'},
}  # fmt: skip


def how_to_load(folder: str, format: str) -> list[str]:
    """One line for each program."""
    return [f"{program}: {line.format(folder=folder)}" for program, line in LOADED_BY[format].items()]


def model_card(lm: LanguageModel, folder: str, format: str, about: dict[str, Any]) -> str:
    """Markdown. ``about``: method, bits, group_size, calibration, perplexity {"before", "after"}, as far as known."""
    lines = ["# " + folder, "", f"{lm.name}, written by labsupport in the format {format}.", ""]
    lines += [f"- source: {lm.source}, stored there as {lm.precision}"]
    lines += [f"- {name.replace('_', ' ')}: {_said(about[name])}" for name in _TOLD if about.get(name) is not None]
    licence = _licence(lm.folder)
    lines += [f"- licence: {licence}", "", "Loaded by", ""]
    return "\n".join([*lines, *(f"- {line}" for line in how_to_load(folder, format)), ""])


_TOLD = ("method", "bits", "group_size", "symmetric", "act_order", "bits_per_weight", "calibration", "perplexity")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _licence(folder: Path | None) -> str:
    files = [] if folder is None else [path.name for path in folder.iterdir() if path.name.upper().startswith("LICEN")]
    return f"that of the source ({files[0]})" if files else "that of the source, which came without its text"
