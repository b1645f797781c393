"""Format ``gguf``: one file for llama.cpp, LM Studio, Ollama and OpenVINO GenAI.

Weights lie in blocks of 32. A grid of 4 bits or fewer in groups of a multiple of 32 is a llama.cpp format already, so
it is written as it is, not rounded again: symmetric ones as Q4_0 (scale d, value d (q - 8)), others as Q4_1 (scale d
and minimum m, value d q + m, with m = -d · zero point rounded to float16); symmetric ones of 5 to 8 bits as Q8_0. Float
weights are rounded to ``kind``: by the `gguf` package, or by llama.cpp itself (gguf_kquants.py). Norms, biases and rope
factors are float32.

gguf_metadata.py writes sizes, gguf_vocabulary.py the tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from labsupport.checkpoints.gguf_kquants import K_KINDS, kind_of, quantize_rows
from labsupport.checkpoints.gguf_metadata import architecture, write_metadata
from labsupport.checkpoints.layers import integer_layers, weights_of
from labsupport.files import replacing
from labsupport.lm import LanguageModel, Llama
from labsupport.lm.rope import RopeScaling, rotary_frequencies
from labsupport.quantization.qweight import QuantizedWeight

KINDS = {"F32": Kind.F32, "F16": Kind.F16, "Q8_0": Kind.Q8_0, "Q4_0": Kind.Q4_0, "Q4_1": Kind.Q4_1}
BLOCK = 32
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    lm: LanguageModel, path: Path | str, kind: str = "Q4_0", importance: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Write ``lm`` to ``path``; float matrices are stored as ``kind``, quantized layers as they are.

    Beside 4-bit layers, embedding and head are stored in 8 bits (K-quants: 6 bits).

    Args:
        kind: one of `KINDS` or `gguf_kquants.K_KINDS`.
        importance: K-quants only: `gguf_kquants.column_importance`; None: llama.cpp's guess from the weights.

    Returns:
        What llama.cpp does otherwise than this model, in words.

    Raises:
        ValueError: ``kind`` is unknown; llama.cpp does not compute this model, or cannot split text as its tokenizer
            does; a quantized layer has no form in GGUF. Nothing is written.
    """
    check_kind(kind, bool(integer_layers(lm.model)))
    quantized = {name: stored(name, weight) for name, _, weight in weights_of(lm.model, "gguf")}
    model_type = architecture(lm.model.config)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, model_type)
        notes = write_metadata(writer, lm, kind if not quantized else "Q4_1")
        for part, name, values in _parts(lm.model):
            turned = model_type in ("llama", "smollm3", "granite") and part.split(".")[-2] in ("attn_q", "attn_k")
            head_dim = lm.model.config.head_dim if turned else None
            if values is None:
                blocks, wanted = quantized[name]
                writer.add_tensor(part, _interleaved(blocks, head_dim).numpy(), raw_dtype=wanted)
                continue
            matrix = _interleaved(values.detach().float().cpu(), head_dim).contiguous()
            wanted = _kind_of(part, matrix.shape, "Q8_0" if quantized and kind.startswith("Q") else kind, lm.model)
            writer.add_tensor(part, rounded(matrix, wanted, kind, (importance or {}).get(name)), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return notes


def check_kind(kind: str, quantized: bool) -> None:
    """
    Raises:
        ValueError: ``kind`` is unknown, or a K-quant of weights that are ``quantized`` already.
    """
    if kind not in KINDS and kind not in K_KINDS:
        raise ValueError(f"kind must be one of {', '.join((*KINDS, *K_KINDS))}; got {kind!r}")
    if kind in K_KINDS and quantized:
        raise ValueError(f"kind {kind} rounds float weights, and these are quantized already: leave kind out")


@torch.no_grad()
def as_stored(model: Llama, kind: str, importance: Mapping[str, Tensor] | None = None) -> Llama:
    """The model that the file is, on the device of ``model``: its float matrices rounded to ``kind``."""
    copied, integers = copy.deepcopy(model), bool(integer_layers(model))
    for part, name, values in _parts(copied):
        if name and values is not None and values.dim() == 2:
            wanted = _kind_of(part, values.shape, "Q8_0" if integers and kind.startswith("Q") else kind, model)
            data = rounded(values.float().cpu(), wanted, kind, (importance or {}).get(name))
            values.copy_(torch.from_numpy(gguf.dequantize(data, wanted).reshape(values.shape)))
    return copied


def rounded(matrix: Tensor, wanted: Kind, kind: str, importance: Tensor | None = None) -> np.ndarray:
    """The tensor's bytes."""
    if kind in K_KINDS and wanted not in (Kind.F32, Kind.F16):
        return quantize_rows(matrix, wanted, importance)
    return gguf.quantize(matrix.numpy(), wanted)


def _kind_of(part: str, shape: torch.Size, kind: str, model: Llama) -> Kind:
    if len(shape) == 1:
        return Kind.F32
    if kind in K_KINDS:
        return kind_of(part, shape[-1], kind, model.config.num_layers, model.config.tie_embeddings)
    wanted = KINDS[kind]
    if shape[-1] % BLOCK and wanted is not Kind.F32:
        return Kind.F16
    if wanted in (Kind.Q4_0, Kind.Q4_1) and part in ("token_embd.weight", "output.weight"):
        return Kind.Q8_0
    return wanted


def _parts(model: Llama) -> Iterator[tuple[str, str, Tensor | None]]:
    """llama.cpp's name of each tensor, the name of its layer, and the tensor; of a quantized layer None."""
    config, integers = model.config, integer_layers(model)
    yield "token_embd.weight", "embed_tokens", model.embed_tokens.weight
    yield "output_norm.weight", "norm", model.norm.weight
    if not config.tie_embeddings:
        yield "output.weight", "lm_head", model.lm_head.weight
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        yield "rope_freqs.weight", "", rope_factors(config.head_dim or 0, config.rope_theta, config.rope_scaling)
    for index, layer in enumerate(model.layers):
        for ours, theirs in _PARTS.items():
            module = _submodule(layer, ours)
            if module is None:
                continue
            name = f"layers.{index}.{ours}"
            yield f"blk.{index}.{theirs}.weight", name, None if name in integers else module.weight  # type: ignore[misc]
            if isinstance(getattr(module, "bias", None), Tensor):
                yield f"blk.{index}.{theirs}.bias", name, module.bias  # type: ignore[misc]


def _submodule(layer: nn.Module, name: str) -> nn.Module | None:
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None


def rope_factors(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """By how much Llama 3.1 slows each pair of a head down: llama.cpp divides the frequencies by it."""
    return rotary_frequencies(head_dim, theta) / rotary_frequencies(head_dim, theta, scaling)


def _interleaved(rows: Tensor, head_dim: int | None) -> Tensor:
    """The rows of each head in llama.cpp's order: the pairs of `rotate`, half a head apart, become neighbours."""
    if head_dim is None:
        return rows
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(rows.shape)


def stored(name: str, weight: QuantizedWeight) -> tuple[Tensor, Kind]:
    """The bytes of a layer's rows, uint8 [out, bytes], and their kind.

    Raises:
        ValueError: the grid has no form in GGUF.
    """
    bits, half = weight.bits, 2 ** (weight.bits - 1)
    if weight.group_index is not None:
        raise ValueError(f"format gguf has no order of columns for {name}: give static_groups=True with act_order=True")
    if weight.group_size % BLOCK:
        raise ValueError(f"format gguf needs groups of a multiple of {BLOCK}; {name} has {weight.group_size}")
    symmetric = bool((weight.zero_point == half).all())
    if bits > 4 and not symmetric:
        raise ValueError(f"format gguf holds {bits} bits with symmetric grids only: give symmetric=True; {name} is not")
    codes = weight.codes().unflatten(1, (-1, BLOCK))
    every = weight.group_size // BLOCK  # blocks that share a scale
    scale = weight.scale.half().repeat_interleave(every, dim=1)[:, : codes.shape[1], None]
    if bits > 4:
        signed = (codes.to(torch.int16) - half).to(torch.int8)
        return torch.cat([_bytes(scale), _bytes(signed)], dim=-1).flatten(1), Kind.Q8_0
    if bits == 4 and symmetric:
        return torch.cat([_bytes(scale), _nibbles(codes)], dim=-1).flatten(1), Kind.Q4_0
    lowest = (-weight.scale.float() * weight.zero_point).half().repeat_interleave(every, dim=1)
    lowest = lowest[:, : codes.shape[1], None]
    return torch.cat([_bytes(scale), _bytes(lowest), _nibbles(codes)], dim=-1).flatten(1), Kind.Q4_1


def _bytes(values: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.cpu().numpy()).view(np.uint8))


def _nibbles(codes: Tensor) -> Tensor:
    """Codes j and j + 16 of a block share a byte."""
    return codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)
