"""A `LlamaConfig` as ``config.json``, under the name of the first family that can state it."""

from __future__ import annotations

from typing import Any

from labsupport.lm.config import LlamaConfig
from labsupport.lm.config_file import GRANITE, NAMES
from labsupport.lm.rope import RopeScaling


def config_to_hugging_face(config: LlamaConfig, eos_token_id: int | list[int]) -> dict[str, Any]:
    """What transformers 4 and 5 read as this model.

    Raises:
        ValueError: no family of transformers has this combination of fields.
    """
    kind = _written_as(config)
    written: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind, "hidden_act": "silu"}
    written |= {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    written["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        written["rope_scaling"] = _written_scaling(config.rope_scaling)
    if kind in ("llama", "qwen3", "smollm3", "granite"):
        written["attention_bias"] = config.output_bias
    if kind in ("llama", "smollm3", "granite"):
        written["mlp_bias"] = config.mlp_bias
    if kind == "granite":
        scale = config.attention_multiplier
        assert config.head_dim is not None
        written |= {name: getattr(config, name) for name in GRANITE}
        written["attention_multiplier"] = config.head_dim**-0.5 if scale is None else scale
    if kind == "smollm3":
        written["no_rope_layers"] = [int(i not in config.unturned_layers) for i in range(config.num_layers)]
    if kind not in ("llama", "granite"):
        written["sliding_window"] = config.sliding_window
        windowed = [config.window(index) is not None for index in range(config.num_layers)]
        if kind != "mistral":
            written["use_sliding_window"] = any(windowed)
            written["layer_types"] = ["sliding_attention" if each else "full_attention" for each in windowed]
    # not left to the family: its default may lie outside of this vocabulary
    return written | {"bos_token_id": None, "pad_token_id": None, "eos_token_id": eos_token_id}


_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
}  # fmt: skip


def _written_as(config: LlamaConfig) -> str:
    """The first family that can state all that differs from a plain Llama."""
    has = {
        "multipliers": (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling) != (1, 1, 1)
        or config.attention_multiplier is not None,
        "unturned": bool(config.unturned_layers),
        "qk_norm": config.qk_norm,
        "qkv_bias": config.qkv_bias and not config.output_bias,
        "all_biases": config.qkv_bias and config.output_bias,
        "mlp_bias": config.mlp_bias,
        "window": config.sliding_window is not None and config.windowed_layers is None,
        "some_windows": config.sliding_window is not None and config.windowed_layers is not None,
    }
    needed = {name for name, present in has.items() if present}
    states = {
        "llama": {"all_biases", "mlp_bias"}, "mistral": {"window"}, "ministral": {"window", "some_windows"},
        "qwen2": {"qkv_bias", "window", "some_windows"}, "qwen3": {"qk_norm", "all_biases", "window", "some_windows"},
        "smollm3": {"unturned", "all_biases", "mlp_bias", "window", "some_windows"},
        "granite": {"multipliers", "all_biases", "mlp_bias"},
    }  # fmt: skip
    always = {"qwen2": {"qkv_bias"}, "qwen3": {"qk_norm"}}
    for kind, can in states.items():
        if always.get(kind, set()) <= needed <= can and config.qkv_bias >= config.output_bias:
            return kind
    raise ValueError(f"no family that transformers knows has all of {', '.join(sorted(needed)) or 'output_bias alone'}")


def _written_scaling(scaling: RopeScaling) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        written["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        written |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        written |= {
            "attention_factor": scaling.attention_factor, "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow, "truncate": scaling.truncate,
        }  # fmt: skip
    return written
