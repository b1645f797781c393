"""A Llama as a llama.cpp file (GGUF): float32, or 8- or 4-bit blocks of 32, rounded by the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from labsupport.files import replacing
from labsupport.lm import LanguageModel, Llama
from labsupport.lm.tokenizer import BpeTokenizer

TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

_WRITTEN = {  # of `LlamaConfig`
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "rope_theta", "rms_norm_eps", "max_positions", "tie_embeddings",
}  # fmt: skip


def write_gguf(lm: LanguageModel, path: Path | str, kind: str = "Q4_0") -> None:
    """Write ``lm`` to ``path``; norms stay float32, all other weights are stored as ``kind``.

    As `llama-quantize` does by default, embedding and head are stored in 8 bits beside 4-bit layers.

    Raises:
        ValueError: ``kind`` is not F32, Q8_0 or Q4_0; the model is quantized, or more than a plain Llama (this format
            has other names for each family); its tokenizer is not a byte-level BPE.
    """
    if kind not in TYPES:
        raise ValueError(f"kind must be one of {', '.join(TYPES)}; got {kind!r}")
    if not isinstance(lm.tokenizer, BpeTokenizer):
        raise ValueError(f"lm must have a byte-level BPE tokenizer, which llama.cpp needs; {lm.name} has none")
    unwritten = (field for field in fields(lm.model.config) if field.name not in _WRITTEN)
    if any(getattr(lm.model.config, field.name) != field.default for field in unwritten):
        raise ValueError(
            "lm must be a plain Llama, without rope scaling, biases, windows, norms of heads or multipliers"
        )
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _write_config(writer, lm)
        _write_vocabulary(writer, lm.tokenizer)
        for name, weight in _tensors(lm.model):
            array = weight.detach().float().cpu().numpy()
            wanted = TYPES["F32"] if array.ndim == 1 else TYPES[kind]
            if kind == "Q4_0" and name in ("token_embd.weight", "output.weight"):
                wanted = TYPES["Q8_0"]
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _tensors(model: Llama) -> Iterator[tuple[str, Tensor]]:
    yield "token_embd.weight", model.embed_tokens.weight
    yield "output_norm.weight", model.norm.weight
    if not model.config.tie_embeddings:
        yield "output.weight", model.lm_head.weight
    for index, layer in enumerate(model.layers):
        for ours, theirs in _NAMES.items():
            module = layer.get_submodule(ours)
            weight = module.weight
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                raise ValueError(f"lm must hold float weights; layers.{index}.{ours} is a {type(module).__name__}")
            if theirs in ("attn_q", "attn_k"):
                weight = interleave_halves(weight, model.config.head_dim)  # type: ignore[arg-type]
            yield f"blk.{index}.{theirs}.weight", weight


def interleave_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head, so that the pairs of `rotate`, half a head apart, become neighbours."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def _write_config(writer: gguf.GGUFWriter, lm: LanguageModel) -> None:
    config = lm.model.config
    assert config.head_dim is not None
    writer.add_name(lm.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: BpeTokenizer) -> None:
    stored = json.loads(tokenizer.tokenizer.to_str())
    special = {token["id"] for token in stored["added_tokens"] if token["special"]}
    tokens = {index: token for token, index in stored["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in stored["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens[index] for index in range(len(tokens))])
    writer.add_token_types([control if index in special else normal for index in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
