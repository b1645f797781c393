"""Small random models of each family that transformers knows and `Llama` computes: what a family means."""

from __future__ import annotations

import json
from typing import Any

import torch

from labsupport.lm import LanguageModel, Llama
from labsupport.lm.config_file import config_from_hugging_face
from labsupport.lm.tokenizer import ByteTokenizer

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
# name -> (class in transformers, what differs from SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("Llama", dict(rms_norm_eps=1e-5)),
    "Llama 3.1": ("Llama", dict(rope_scaling=LLAMA3, rope_theta=500_000.0)),
    "linear": ("Llama", dict(rope_scaling=dict(rope_type="linear", factor=4.0))),
    "dynamic": ("Llama", dict(rope_scaling=dict(rope_type="dynamic", factor=4.0), max_position_embeddings=32)),
    "yarn": (
        "Llama",
        dict(rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=32)),
    ),
    "biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "Qwen 2.5": ("Qwen2", dict(tie_word_embeddings=True)),
    "Qwen 2, windows": ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)),
    "Qwen 3": ("Qwen3", dict(head_dim=32)),
    "Mistral": ("Mistral", dict(sliding_window=8)),
    "Ministral": (
        "Ministral",
        dict(head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2),
    ),
    "SmolLM3": ("SmolLM3", dict(bos_token_id=1, eos_token_id=0)),
    "Granite": (
        "Granite",
        dict(embedding_multiplier=3.0, attention_multiplier=0.1, residual_multiplier=0.3, logits_scaling=4.0),
    ),
}  # fmt: skip
SIZES = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=0,
             pad_token_id=None)  # fmt: skip


def hugging_face(name: str, seed: int = 0) -> Any:
    """A model of transformers with random weights, large enough that every part of it shows in the logits."""
    import transformers

    kind, extra = FAMILIES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SIZES | extra)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(4)
    return model


def ours(theirs: Any) -> LanguageModel:
    """The same weights as a `Llama`, with bytes as tokens."""
    config = config_from_hugging_face(json.loads(theirs.config.to_json_string(use_diff=False)))
    model = Llama(config)
    state = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    if config.tie_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state)
    return LanguageModel(model.eval(), ByteTokenizer(), "random", "transformers", "float32")
