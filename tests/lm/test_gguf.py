"""A GGUF file written here, read back: layout, quantized blocks, tokenizer, and the way off the grid."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch

from labsupport.lm import Llama, LlamaConfig, load_lm
from labsupport.lm.gguf_file import convert_gguf, leave_grid

CONFIG = LlamaConfig(vocab_size=260, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2)
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    model = Llama(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.15) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
    return model


def test_the_function_is_the_same_and_the_weights_are_off_the_grid(model, tmp_path):
    path = tmp_path / "model.gguf"
    on_grid = write_gguf(path, model)
    convert_gguf(path, tmp_path, {"name": "toy", "source": "a test", "precision": "Q4_1"})
    loaded = load_lm(tmp_path, verbose=False)
    model.load_state_dict(on_grid, strict=False)
    tokens = torch.randint(260, (2, 20))
    torch.testing.assert_close(loaded.model(tokens), model(tokens), atol=1e-3, rtol=1e-4)

    name = "layers.1.mlp.gate_proj.weight"
    assert levels_per_block(on_grid[name]) <= 16
    assert levels_per_block(loaded.model.state_dict()[name]) == 32
    assert loaded.tokenizer.encode("ab1a<eos>") == [259, ord("1"), ord("a"), 257]
    assert loaded.tokenizer.eos_token_id == 257
    assert json.loads((tmp_path / "labsupport.json").read_text())["precision"] == "Q4_1"


def test_leaving_the_grid_keeps_the_logits(model):
    moved = Llama(CONFIG).eval()
    moved.load_state_dict(leave_grid(model.state_dict(), CONFIG, seed=3))
    tokens = torch.randint(260, (2, 20))
    torch.testing.assert_close(moved(tokens), model(tokens), atol=1e-3, rtol=1e-4)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"layers.0.{part}.weight"
        assert not torch.allclose(moved.state_dict()[name], model.state_dict()[name], rtol=0.01)


def levels_per_block(weight: torch.Tensor) -> int:
    return max(len(block.unique()) for block in weight.reshape(-1, 32)[:64])


def write_gguf(path, model: Llama) -> dict[str, torch.Tensor]:
    """As llama.cpp's converter does; returns the weights as the quantized file holds them, in our layout."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_block_count(CONFIG.num_layers)
    writer.add_head_count(CONFIG.num_heads)
    writer.add_head_count_kv(CONFIG.num_kv_heads)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_context_length(CONFIG.max_positions)
    tokens = [chr(i) if 33 <= i < 127 else f"<{i}>" for i in range(256)] + ["<pad>", "<eos>", "<x>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    on_grid = {}

    def add(name: str, ours: str, heads: int = 0) -> None:
        value = model.state_dict()[ours].numpy()
        if value.ndim == 1 or "embd" in name:
            writer.add_tensor(name, value)
            return
        packed = gguf.quantize(value, gguf.GGMLQuantizationType.Q4_1)
        on_grid[ours] = torch.tensor(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_1))
        if heads:  # rows i and i + half of each head become neighbours
            out, columns = packed.shape
            packed = np.ascontiguousarray(packed.reshape(heads, 2, out // heads // 2, columns).swapaxes(1, 2))
            packed = packed.reshape(out, columns)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

    add("token_embd.weight", "embed_tokens.weight")
    add("output_norm.weight", "norm.weight")
    for layer in range(CONFIG.num_layers):
        for part, ours in PARTS.items():
            heads = {"attn_q": CONFIG.num_heads, "attn_k": CONFIG.num_kv_heads}.get(part, 0)
            add(f"blk.{layer}.{part}.weight", f"layers.{layer}.{ours}.weight", heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return on_grid
