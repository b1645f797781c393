"""What a GGUF file says besides its tensors: sizes under the names of llama.cpp's architectures.

gguf_vocabulary.py has the tokenizer.
"""

from __future__ import annotations

import gguf

from labsupport.checkpoints.gguf_kquants import K_KINDS
from labsupport.checkpoints.gguf_vocabulary import write_vocabulary
from labsupport.lm import LanguageModel
from labsupport.lm.config import LlamaConfig
from labsupport.lm.rope import yarn_attention_factor

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7} | {name: of[2] for name, of in K_KINDS.items()}
SHORTEST = 256  # tokens: a context that is still of use


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
        f"a sliding window of fewer than {SHORTEST} tokens": context_length(config)
        < min(SHORTEST, config.max_positions),
        f"rope_scaling of kind dynamic after fewer than {SHORTEST} positions": config.rope_scaling is not None
        and config.rope_scaling.kind == "dynamic"
        and config.max_positions < SHORTEST,
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


def context_length(config: LlamaConfig) -> int:
    """Tokens that llama.cpp computes right: it knows neither the windows of these architectures nor dynamic rope
    scaling, and within the window, or the original positions, there is nothing to know."""
    scaling = config.rope_scaling
    original = scaling.original_positions if scaling is not None and scaling.kind == "dynamic" else None
    return min(config.max_positions, config.sliding_window or config.max_positions, original or config.max_positions)


def write_metadata(writer: gguf.GGUFWriter, lm: LanguageModel, kind: str) -> list[str]:
    """Returns what llama.cpp does otherwise than this model, in words."""
    config, notes = lm.model.config, []
    context = context_length(config)
    if config.sliding_window is not None and config.sliding_window < config.max_positions:
        notes.append(f"llama.cpp computes no sliding window: it is right up to {context} tokens, the file's context")
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        notes.append(f"llama.cpp has no dynamic rope scaling: it is right up to {context} tokens, the file's context")
    assert config.head_dim is not None
    writer.add_name(lm.name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
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
    return notes + write_vocabulary(writer, lm)
