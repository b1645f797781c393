"""The model card (README.md) of a written checkpoint: what it is, from what, how it was made, how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from labsupport.lm import LanguageModel

_VLLM = "`vllm serve {folder}`"
_TRANSFORMERS = '`AutoModelForCausalLM.from_pretrained("{folder}")`'
# Without the option, transformers 5 expects zero points that are not packed, and refuses asymmetric grids.
_DEQUANTIZED = (
    '`AutoModelForCausalLM.from_pretrained("{folder}", quantization_config=CompressedTensorsConfig(dequantize=True))`'
)
_OURS = '`load_lm("{folder}")`, `labsupport serve --model {folder}`'
LOADED_BY = {
    "labsupport": {"labsupport": _OURS},
    "huggingface": {"transformers": _TRANSFORMERS, "vLLM": _VLLM, "labsupport": _OURS},
    "compressed-tensors": {
        "vLLM": _VLLM, "transformers (with the package compressed-tensors)": _DEQUANTIZED, "labsupport": _OURS,
    },
    "gptq": {
        "vLLM (symmetric grids)": _VLLM, "transformers (with the package gptqmodel)": _TRANSFORMERS,
        "labsupport": _OURS,
    },
    "awq": {"vLLM": _VLLM, "transformers (with the package gptqmodel)": _TRANSFORMERS, "labsupport": _OURS},
    "gguf": {
        "llama.cpp": "`llama-cli -m {folder}/model.gguf`", "Ollama": '`FROM {folder}/model.gguf` in a Modelfile',
        "OpenVINO GenAI (Llama, Qwen 2 and 3; F16, Q8_0, Q4_0, Q4_1)": '`LLMPipeline("{folder}/model.gguf", "CPU")`',
    },
}  # fmt: skip
# What is said of the making, in this order.
TOLD = (
    "method", "bits", "group_size", "symmetric", "act_order", "smooth", "kind", "bits_per_weight", "sparsity",
    "pattern", "steps", "tokens", "calibration", "perplexity", "evaluation",
)  # fmt: skip


def how_to_load(folder: str, format: str) -> list[str]:
    """One line for each program."""
    return [f"{program}: {line.format(folder=folder)}" for program, line in LOADED_BY[format].items()]


def model_card(
    lm: LanguageModel, folder: str, format: str, about: dict[str, Any], notes: Sequence[str] = ()
) -> str:  # fmt: skip
    """Markdown, after the header that model hubs read.

    Args:
        about: those of `TOLD` that are known.
        notes: what the program that reads it does otherwise than the model.
    """
    spdx, licence = licence_of(lm)
    header = ["---", *([f"license: {spdx}"] if spdx else []), "pipeline_tag: text-generation", "---"]
    lines = [*header, "# " + folder, "", f"{lm.name}, written by labsupport in the format {format}.", ""]
    lines += [f"- source: {lm.source}, stored there as {lm.precision}"]
    lines += [f"- {name.replace('_', ' ')}: {_said(about[name])}" for name in TOLD if about.get(name) is not None]
    if about.get("perplexity") is None:
        lines += ["- perplexity: not measured; the option --evaluate does"]
    lines += [f"- licence: {licence}", *(f"- limit: {note}" for note in notes), "", "Loaded by", ""]
    return "\n".join([*lines, *(f"- {line}" for line in how_to_load(folder, format)), ""])


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_said(each)}" for name, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def licence_of(lm: LanguageModel) -> tuple[str | None, str]:
    """The short name that the source's own card gives, if any; and a sentence."""
    if lm.folder is None:
        return None, "that of the source, which came without its text"
    card = lm.folder / "README.md"
    header = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.S) if card.is_file() else None
    found = None if header is None else re.search(r"^license: *(\S+)", header[1], re.M)
    spdx = None if found is None else found[1].strip("\"'")
    files = sorted(path.name for path in lm.folder.iterdir() if path.name.upper().startswith("LICEN"))
    said = ", ".join([*([spdx] if spdx else []), *files])
    return spdx, f"that of the source ({said})" if said else "that of the source, which came without its text"
