"""``config.json`` as a `LlamaConfig`, read as the authors' library (transformers 4 and 5) reads it, and written for it.

A key that is absent means the family's default, which differs from ours and between families. Whatever this Llama would
compute wrongly is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labsupport.lm.model import LlamaConfig
from labsupport.lm.rope import RopeScaling, yarn_attention_factor

SUPPORTED = "llama, mistral, ministral, qwen2, qwen3, smollm3 and granite"
_REFUSED = {
    "moe": "a mixture of experts", "mixtral": "a mixture of experts", "gemma": "another architecture (Gemma)",
    "deepseek": "multi-head latent attention", "mla": "multi-head latent attention",
    "phi": "another architecture (Phi)", "gpt": "another architecture (GPT)",
    "olmo": "another architecture (OLMo: norms after the blocks)", "mamba": "a state space model", "bert": "an encoder",
}  # fmt: skip


@dataclass(frozen=True)
class _Family:
    """What config.json means by what it leaves out."""

    kv_heads: int | None = None  # None: as many as query heads
    max_positions: int = 2048
    head_dim: int | None = None  # None: hidden_size / num_heads
    rope_theta: float = 10_000.0
    tied: bool = False
    always: dict[str, Any] = field(default_factory=dict)  # fields of LlamaConfig that config.json does not state


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(kv_heads=8, max_positions=131072),
    "ministral": _Family(kv_heads=8, max_positions=131072),
    "qwen2": _Family(kv_heads=32, max_positions=32768, always={"qkv_bias": True}),
    "qwen3": _Family(kv_heads=32, max_positions=32768, head_dim=128, always={"qk_norm": True}),
    "smollm3": _Family(kv_heads=4, max_positions=32768, rope_theta=2_000_000.0, tied=True),
    "granite": _Family(),
}

_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
_GRANITE = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def read_config(folder: Path) -> LlamaConfig:
    """
    Raises:
        ValueError: there is no config.json, it lacks a size, or it describes a model that `Llama` does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"folder must hold config.json; {folder.name} does not")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"config.json of {folder.name} is not JSON: {error}") from error
    return config_from_hugging_face(given)


def config_from_hugging_face(given: dict[str, Any]) -> LlamaConfig:
    family = _family(given)
    values = {ours: given[theirs] for ours, theirs in _NAMES.items() if given.get(theirs) is not None}
    missing = [theirs for ours, theirs in list(_NAMES.items())[:5] if values.get(ours) is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    if "num_key_value_heads" in given and given["num_key_value_heads"] is None:
        values["num_kv_heads"] = values["num_heads"]
    values.setdefault("num_kv_heads", family.kv_heads or values["num_heads"])
    values.setdefault("head_dim", family.head_dim)
    values.setdefault("max_positions", family.max_positions)
    values.setdefault("tie_embeddings", family.tied)
    values.setdefault("rms_norm_eps", 1e-6)
    if given.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"config.json: hidden_act must be 'silu'; got {given['hidden_act']!r}")
    values |= family.always | _biases(given) | _rope(given, family, values["max_positions"]) | _windows(given, values)
    if given["model_type"] == "granite":
        values |= {name: float(given.get(name, 1.0)) for name in _GRANITE}
    if given["model_type"] == "smollm3":
        interval, count = given.get("no_rope_layer_interval", 4), values["num_layers"]
        turned = given.get("no_rope_layers") or [(index + 1) % interval != 0 for index in range(count)]
        values["unturned_layers"] = tuple(index for index, turns in enumerate(turned) if not turns)
    return LlamaConfig(**values)


def _family(given: dict[str, Any]) -> _Family:
    kind = given.get("model_type")
    if kind in _FAMILIES:
        return _FAMILIES[kind]
    named = " ".join([str(kind), *map(str, given.get("architectures") or [])]).lower()
    reason = next((why for part, why in _REFUSED.items() if part in named), "not an architecture that we know")
    raise ValueError(f"config.json: model_type {kind!r} is {reason}; supported are {SUPPORTED}")


def _biases(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given["model_type"] in ("llama", "qwen3", "smollm3", "granite") and given.get("attention_bias"):
        found |= {"qkv_bias": True, "output_bias": True}
    if given["model_type"] in ("llama", "smollm3", "granite") and given.get("mlp_bias"):
        found["mlp_bias"] = True
    return found


def _rope(given: dict[str, Any], family: _Family, max_positions: int) -> dict[str, Any]:
    """theta, and the scaling for long contexts: in ``rope_parameters`` (transformers 5), else ``rope_scaling``."""
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        different = {json.dumps(value, sort_keys=True) for value in rope.values() if isinstance(value, dict)}
        if len(different) > 1:
            raise ValueError("config.json: rope_parameters must be the same for all layers; got several")
        rope = json.loads(different.pop())
    theta = rope.get("rope_theta") or given.get("rope_theta") or family.rope_theta
    kind = rope.get("rope_type", rope.get("type", "default")) or "default"
    if float(rope.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1.0) != 1:
        raise ValueError("config.json: partial_rotary_factor must be 1: this Llama turns whole heads")
    if kind == "default":
        return {"rope_theta": float(theta)}
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise ValueError(f"config.json: rope_type must be default, linear, dynamic, llama3 or yarn; got {kind!r}")
    original = given.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = max_positions if original is None or kind in ("linear", "dynamic") else original
    factor = rope.get("factor")
    factor = max_positions / original if factor is None and kind == "yarn" else factor
    needed = {"factor": factor}
    if kind == "llama3":
        needed |= {name: rope.get(name) for name in ("low_freq_factor", "high_freq_factor")}
    lacking = [name for name, value in needed.items() if value is None]
    if lacking:
        raise ValueError(f"config.json: rope_type {kind!r} needs {', '.join(lacking)}")
    numbers: dict[str, Any] = {name: float(value) for name, value in needed.items() if value is not None}
    if kind == "yarn":
        sharpened = rope.get("attention_factor")
        if sharpened is None:
            sharpened = yarn_attention_factor(numbers["factor"], rope.get("mscale"), rope.get("mscale_all_dim"))
        numbers |= {
            "attention_factor": float(sharpened), "beta_fast": float(rope.get("beta_fast") or 32),
            "beta_slow": float(rope.get("beta_slow") or 1), "truncate": rope.get("truncate", True),
        }  # fmt: skip
    return {"rope_theta": float(theta), "rope_scaling": RopeScaling(kind, original_positions=original, **numbers)}


def _windows(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Sliding windows: of all layers in Mistral; in Ministral, Qwen and SmolLM3 of those that ``layer_types`` names."""
    kind, count = given["model_type"], values["num_layers"]
    if kind in ("llama", "granite"):
        return {}
    window = given.get("sliding_window", None if kind == "smollm3" else 4096)
    if window is None or (kind in ("qwen2", "qwen3", "smollm3") and not given.get("use_sliding_window", False)):
        return {}
    types = given.get("layer_types")
    if kind == "mistral" or (types is None and kind == "ministral"):
        return {"sliding_window": window}
    if types is None and kind == "smollm3":
        interval = given.get("no_rope_layer_interval", 4)
        turned = given.get("no_rope_layers") or [(index + 1) % interval != 0 for index in range(count)]
        types = ["full_attention" if turns else "sliding_attention" for turns in turned]
    if types is None:
        first = given.get("max_window_layers", 28)
        types = ["sliding_attention" if index >= first else "full_attention" for index in range(count)]
    windowed = tuple(index for index, name in enumerate(types) if name == "sliding_attention")
    return {"sliding_window": window, "windowed_layers": windowed} if windowed else {}


# ------------------------------------------------------------------------------------------------------ writing


def config_to_hugging_face(config: LlamaConfig, eos_token_id: int | list[int]) -> dict[str, Any]:
    """What transformers 4 and 5 read as this model.

    Raises:
        ValueError: no family of transformers has this combination of fields.
    """
    kind = _written_as(config)
    written: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind, "hidden_act": "silu"}
    written |= {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()}
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
        written |= {name: getattr(config, name) for name in _GRANITE}
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
