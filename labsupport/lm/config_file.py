"""``config.json`` as a `LlamaConfig`, read as the authors' library (transformers 4 and 5) reads it.

A key that is absent means the family's default, which differs from ours and between families. Whatever this Llama would
compute wrongly is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labsupport.lm.config import LlamaConfig
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

NAMES = {
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
GRANITE = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


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
    values = {ours: given[theirs] for ours, theirs in NAMES.items() if given.get(theirs) is not None}
    missing = [theirs for ours, theirs in list(NAMES.items())[:5] if values.get(ours) is None]
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
        values |= {name: float(given.get(name, 1.0)) for name in GRANITE}
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
