"""Sizes against published parameter counts, against torch's own accounting, and with their units right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama
from labsupport.quantization.rtn import rtn_quantize
from labsupport.quantization.size import (
    GB,
    GIB,
    PUBLISHED_CONFIGS,
    count_parameters,
    format_bytes,
    inference_memory,
    parameter_breakdown,
    quantized_bits_per_weight,
    training_bytes_per_parameter,
    training_memory,
)

LLAMA_70B = PUBLISHED_CONFIGS["meta-llama/Llama-2-70b-hf"]
SMALL = LlamaConfig(300, 128, 352, 3, 4, 2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_published_parameter_counts(name, parameters):
    assert count_parameters(PUBLISHED_CONFIGS[name]) == parameters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_dim", [None, 48])
def test_counts_equal_those_of_a_built_model(tied, head_dim):
    config = LlamaConfig(300, 128, 352, 3, 4, 2, head_dim=head_dim, tie_embeddings=tied)
    model = Llama(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    parts = parameter_breakdown(config)
    assert parts["attention"] == sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n)
    assert parts["mlp"] == sum(p.numel() for n, p in model.named_parameters() if "mlp" in n)
    assert parts["norms"] == sum(p.numel() for n, p in model.named_parameters() if "norm" in n)


def test_llama_2_70b_in_gib():
    sizes = {bits: count_parameters(LLAMA_70B) * bits / 8 / GIB for bits in (32, 16, 8, 4)}
    assert {bits: round(size, 2) for bits, size in sizes.items()} == {32: 256.96, 16: 128.48, 8: 64.24, 4: 32.12}
    weights = inference_memory(LLAMA_70B, bits_per_weight=8, other_bits=8).weights
    assert weights == 68_976_648_192


def test_both_units_are_named():
    assert (GIB, GB) == (1024**3, 1000**3)
    assert format_bytes(70e9 * 4) == "260.77 GiB (280.00 GB)"
    assert format_bytes(2**20 * 1.5) == "1.50 MiB (1.57 MB)"
    assert format_bytes(2048) == "2.00 KiB (2.05 kB)"
    assert format_bytes(17) == "17 bytes"


def test_training_takes_16_bytes_a_parameter_however_the_model_is_served():
    mixed = training_bytes_per_parameter()
    assert mixed == {"weights": 2, "gradients": 2, "master_weights": 4, "adam_m": 4, "adam_v": 4}
    assert sum(mixed.values()) == sum(training_bytes_per_parameter("float32").values()) == 16
    assert round(70e9 * sum(mixed.values()) / GIB) == 1043
    budget = training_memory(LLAMA_70B)
    parameters = count_parameters(LLAMA_70B)
    assert budget.total - budget.activations == 16 * parameters
    assert budget.master_weights + budget.adam_m + budget.adam_v == 12 * parameters and budget.kv_cache == 0
    for precision in ("int8", "int4"):
        with pytest.raises(ValueError, match="integer weights cannot be trained"):
            training_bytes_per_parameter(precision)


def test_training_activations_are_what_autograd_saves():
    model, tokens = Llama(SMALL), torch.randint(300, (4, 128))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.requires_grad
    budget = training_memory(SMALL, batch_size=4, seq_len=128, precision="float32")
    assert budget.activations == pytest.approx(sum(saved.values()), rel=0.02)


def test_recomputing_keeps_one_layer_and_the_inputs_of_the_others():
    def activations(recompute):
        return training_memory(LLAMA_70B, 1, 4096, recompute=recompute).activations

    assert activations(True) < activations(False) / 10
    assert activations(True) > 80 * 4096 * 8192 * 2


def test_memory_of_inference_is_separated():
    config = PUBLISHED_CONFIGS["meta-llama/Llama-2-7b-hf"]
    budget = inference_memory(config, batch_size=32, seq_len=2048)
    assert budget.kv_cache == 32 * GIB  # 512 KiB per token
    assert budget.weights == 2 * count_parameters(config)
    assert budget.gradients == budget.master_weights == budget.adam_m == budget.adam_v == 0
    assert budget.total == budget.weights + budget.activations + budget.kv_cache
    assert inference_memory(config, 32, 2048, kv_bits=8).kv_cache == 16 * GIB
    assert inference_memory(LLAMA_70B, 32, 2048).kv_cache == 2 * 80 * 8 * 128 * 2 * 32 * 2048  # 8 of 64 heads
    # Weights are read once however many sequences there are; caches are not shared.
    assert inference_memory(config, 64, 2048).weights == budget.weights
    assert "kv cache        32.00 GiB (34.36 GB)" in str(budget)


def test_bits_per_weight_with_metadata():
    assert quantized_bits_per_weight(4, 128) == 4.15625
    assert quantized_bits_per_weight(4, 128, zero_point_bits=0) == 4.125
    assert quantized_bits_per_weight(8, None, in_features=4096) == 8 + 24 / 4096
    assert 32 / quantized_bits_per_weight(4, 128) == pytest.approx(7.70, abs=0.005)
    assert 16 / quantized_bits_per_weight(4, 128) == pytest.approx(3.85, abs=0.005)
    assert 70e9 * quantized_bits_per_weight(4, 128) / 8 / GIB == pytest.approx(33.9, abs=0.05)
    with pytest.raises(ValueError, match="in_features must give the length of a row"):
        quantized_bits_per_weight(4, None)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [64, 128, None])
def test_bits_per_weight_are_those_of_a_stored_weight(bits, group_size):
    weight = torch.randn(64, 576, generator=torch.Generator().manual_seed(0))
    stored = rtn_quantize(weight, bits, group_size)
    assert quantized_bits_per_weight(bits, group_size, in_features=576) == stored.bits_per_weight


def test_quantized_weights_leave_embedding_and_head_alone():
    parts = parameter_breakdown(LLAMA_70B)
    linear = parts["attention"] + parts["mlp"]
    others = count_parameters(LLAMA_70B) - linear
    budget = inference_memory(LLAMA_70B, bits_per_weight=4.15625)
    assert budget.weights == round(linear * 4.15625 / 8 + others * 2)
