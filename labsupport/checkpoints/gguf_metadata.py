"""What a GGUF file says besides its tensors: sizes under the names of llama.cpp's architectures, and the vocabulary."""

from __future__ import annotations

import json
from typing import Any

import gguf
from tokenizers import Tokenizer

from labsupport.checkpoints.companions import chat_template, tokenizer_of
from labsupport.lm import LanguageModel
from labsupport.lm.config import LlamaConfig
from labsupport.lm.rope import yarn_attention_factor

# The regular expressions that split text before byte pairs are merged, and llama.cpp's names for them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_PATTERNS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}


def architecture(config: LlamaConfig) -> str:
    """llama.cpp's name for the model.

    Raises:
        ValueError: llama.cpp would compute something else.
    """
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)
    granite = multipliers != (1, 1, 1) or config.attention_multiplier is not None
    turns = [index for index in range(config.num_layers) if (index + 1) % 4]
    skipping = bool(config.unturned_layers)
    yarn = config.rope_scaling if config.rope_scaling is not None and config.rope_scaling.kind == "yarn" else None
    refused = {
        "a sliding window": config.sliding_window is not None and config.sliding_window < config.max_positions,
        "rope_scaling of kind dynamic": config.rope_scaling is not None and config.rope_scaling.kind == "dynamic",
        "a rope_scaling of kind yarn with an attention_factor of its own": yarn is not None
        and (not yarn.truncate or abs(yarn.attention_factor - yarn_attention_factor(yarn.factor)) > 1e-6),
        "biases in the MLP": config.mlp_bias and (config.qk_norm or skipping),
        "biases in attention": config.qkv_bias and (config.qk_norm or skipping),
        "layers without rotation that are not every fourth": skipping
        and list(config.unturned_layers) != [index for index in range(config.num_layers) if index not in turns],
        "several families' differences at once": granite + config.qk_norm + skipping > 1,
    }
    found = [what for what, present in refused.items() if present]
    if found:
        raise ValueError(f"format gguf cannot hold this model: llama.cpp does not compute {found[0]}")
    if granite or skipping or config.qk_norm:
        return "granite" if granite else "smollm3" if skipping else "qwen3"
    return "qwen2" if config.qkv_bias and not config.output_bias and not config.mlp_bias else "llama"


def write_metadata(writer: gguf.GGUFWriter, lm: LanguageModel, kind: str) -> None:
    config = lm.model.config
    assert config.head_dim is not None
    writer.add_name(lm.name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
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
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(getattr(gguf.RopeScalingType, scaling.kind.upper()))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling.original_positions)
            writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    if architecture(config) == "granite":
        scale = config.attention_multiplier
        writer.add_attention_scale(config.head_dim**-0.5 if scale is None else scale)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    _write_vocabulary(writer, lm)


def _write_vocabulary(writer: gguf.GGUFWriter, lm: LanguageModel) -> None:
    tokenizer = tokenizer_of(lm)
    stored = json.loads(tokenizer.to_str())
    pre = pre_tokenizer(stored, lm.name)
    special = {token["id"] for token in stored["added_tokens"] if token["special"]}
    added = {token["id"]: token["content"] for token in stored["added_tokens"]}
    tokens = {index: token for token, index in stored["model"]["vocab"].items()} | added
    count = lm.model.config.vocab_size
    if max(tokens) >= count:
        raise ValueError(f"format gguf needs vocab_size of at least {max(tokens) + 1}, the tokenizer's; got {count}")
    kinds, names = gguf.TokenType, [tokens.get(index, f"[PAD{index}]") for index in range(count)]
    known = dict.fromkeys(tokens, kinds.NORMAL) | dict.fromkeys(added, kinds.USER_DEFINED)
    known |= dict.fromkeys(special, kinds.CONTROL)
    types = [known.get(index, kinds.UNUSED) for index in range(count)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges(merges or [f"{names[0]} {names[0]}"])  # llama.cpp wants a list with something in it
    eos = lm.tokenizer.eos_token_id
    bos = _begins_with(tokenizer)
    for add, token in (
        (writer.add_eos_token_id, eos), (writer.add_bos_token_id, eos if bos is None else bos),
        (writer.add_pad_token_id, eos), (writer.add_unk_token_id, eos),
    ):  # fmt: skip
        add(max(token, 0))
    writer.add_add_bos_token(bos is not None)
    writer.add_add_space_prefix(False)
    template = chat_template(lm)
    if template is not None:
        writer.add_chat_template(template)


def _begins_with(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before a text, if any."""
    plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return full[0] if len(full) > len(plain) and full[0] != plain[0] else None


def pre_tokenizer(stored: dict[str, Any], name: str) -> str:
    """llama.cpp's name for how the tokenizer splits text before it merges.

    Raises:
        ValueError: it is no byte-level BPE, or llama.cpp has no name for it that is known here.
    """
    if stored["model"].get("type", "BPE") != "BPE" or stored["model"].get("byte_fallback"):
        raise ValueError(f"lm must have a byte-level BPE tokenizer, which this format needs; that of {name} is another")
    found = stored.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and patterns[0] in _PATTERNS:
        return _PATTERNS[patterns[0]]
    raise ValueError(
        f"format gguf: llama.cpp would split text otherwise than the tokenizer of {name}, whose pre_tokenizer is "
        f"{' + '.join(map(str, kinds))} {patterns or ''}".rstrip()
    )
