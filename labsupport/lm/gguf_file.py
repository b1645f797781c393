"""A llama.cpp file (GGUF) as a Hugging Face folder: dequantized, with its rotary layout undone, off its 4-bit grid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from labsupport.lm.config import LlamaConfig
from labsupport.lm.folder import write_folder

_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # llama.cpp's token type of special tokens


def convert_gguf(path: Path, folder: Path, record: dict[str, Any]) -> None:
    """Write ``folder`` from the GGUF file at ``path``."""
    reader = GGUFReader(path)
    config = read_gguf_config(reader)
    weights = leave_grid(read_gguf_weights(reader, config), config)
    fields = reader.fields
    read_gguf_tokenizer(reader).save(str(folder / "tokenizer.json"))
    write_folder(folder, config, weights, record, int(fields["tokenizer.ggml.eos_token_id"].contents()))


def read_gguf_config(reader: GGUFReader) -> LlamaConfig:
    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_layers=field("block_count"),
        num_heads=field("attention.head_count"),
        num_kv_heads=field("attention.head_count_kv"),
        rope_theta=field("rope.freq_base"),
        rms_norm_eps=round(field("attention.layer_norm_rms_epsilon"), 12),
        max_positions=field("context_length"),
        tie_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
    )


def read_gguf_weights(reader: GGUFReader, config: LlamaConfig) -> dict[str, Tensor]:
    weights = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        if match is None or match[2] not in _NAMES:
            raise ValueError(f"the GGUF file holds {tensor.name}, which a Llama does not have")
        layer, part = match.groups()
        name = f"{_NAMES[part]}.weight" if layer is None else f"layers.{layer}.{_NAMES[part]}.weight"
        value = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        if part in ("attn_q", "attn_k"):
            value = _halves(value, config.num_heads if part == "attn_q" else config.num_kv_heads)
        weights[name] = value
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head; Hugging Face rotates row i with row i + head_dim / 2."""
    out, columns = weight.shape
    return weight.view(heads, out // heads // 2, 2, columns).transpose(1, 2).reshape(out, columns)


def leave_grid(weights: dict[str, Tensor], config: LlamaConfig, seed: int = 0) -> dict[str, Tensor]:
    """Same function, other numbers: weights that were stored in 4 bits lie on a 4-bit grid, and quantizing them again
    to 4 bits would seem to cost nothing. Random factors exp(U(-1/4, 1/4)) move from each norm into the columns that
    read it, from v_proj's rows into o_proj's columns, and from up_proj's rows into down_proj's columns; no product
    changes.
    """
    weights = dict(weights)
    generator = torch.Generator().manual_seed(seed)
    group = config.num_heads // config.num_kv_heads

    def factors(count: int) -> Tensor:
        return torch.empty(count).uniform_(-0.25, 0.25, generator=generator).exp()

    def scale(name: str, factor: Tensor) -> None:
        weights[name] = weights[name] * factor

    for index in range(config.num_layers):
        layer = f"layers.{index}."
        readers = {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }
        for norm, projections in readers.items():
            factor = factors(config.hidden_size)
            scale(f"{layer}{norm}.weight", 1 / factor)
            for projection in projections:
                scale(f"{layer}{projection}.weight", factor)
        assert config.head_dim is not None
        factor = factors(config.num_kv_heads * config.head_dim)
        scale(f"{layer}self_attn.v_proj.weight", 1 / factor[:, None])
        shared = factor.view(config.num_kv_heads, 1, -1).expand(-1, group, -1).reshape(-1)
        scale(f"{layer}self_attn.o_proj.weight", shared)
        factor = factors(config.intermediate_size)
        scale(f"{layer}mlp.up_proj.weight", 1 / factor[:, None])
        scale(f"{layer}mlp.down_proj.weight", factor)
    return weights


def read_gguf_tokenizer(reader: GGUFReader) -> Tokenizer:
    """Byte-level BPE in which each digit is a token, as SmolLM2 was trained."""

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    if (field("model"), field("pre")) != ("gpt2", "smollm"):
        raise ValueError(f"the GGUF tokenizer must be gpt2/smollm; got {field('model')}/{field('pre')}")
    vocabulary = {token: index for index, token in enumerate(field("tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(field("tokens"), field("token_type"), strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer
