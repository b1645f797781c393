"""Small models to write, and programs that read them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from labsupport.lm import LanguageModel, Llama
from labsupport.lm.config import LlamaConfig
from labsupport.lm.tokenizer import BpeTokenizer
from labsupport.quantization import quantize_model

WINDOWS = [torch.arange(start, start + 64) % 256 for start in (1, 90)]
TOKENS = torch.arange(80).view(2, 40) * 37 % 255 + 1


def ascii_tokenizer() -> BpeTokenizer:
    """256 tokens of one or two letters, and an end: no token is a part of a character."""
    letters = [chr(code) for code in range(33, 127)]
    pairs = [(left, right) for left in letters for right in letters][: 255 - len(letters)]
    texts = ["<end>", *letters, *(left + right for left, right in pairs)]
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(texts)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return BpeTokenizer(tokenizer, 0)


def random_lm(**fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2)
    model = Llama(LlamaConfig(**sizes | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2)
    return LanguageModel(model, ascii_tokenizer(), "random", "a test", "float32")


def quantized(lm: LanguageModel, method: str = "rtn", **options: Any) -> LanguageModel:
    options = {"group_size": 32} | options
    model: Any = quantize_model(lm.model, WINDOWS, method, progress=False, **options)
    return replace(lm, model=model)


@torch.no_grad()
def logits(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    found = model(tokens)
    return found if isinstance(found, Tensor) else found.logits


def dequantized(model: Llama) -> Llama:
    """Ordinary linear layers with the weights that the integers stand for."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "dequantize"):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data = module.dequantize()
            if module.bias is not None:
                linear.bias.data = module.bias
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, linear)
    return plain


def in_transformers(folder: Path, **options: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def in_llama_cpp(path: Path, prompt: list[int], count: int) -> list[dict[int, float]]:
    """Greedy decoding: of each step the logarithms of the largest probabilities, the chosen token first. No end."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx, params.n_gpu_layers, params.verbosity = 1, 256, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 5}
    answer = xllamacpp.Server(params).handle_completions(body | {"cache_prompt": False})
    steps = answer["choices"][0]["logprobs"]["content"]
    return [
        {step["id"]: step["logprob"]} | {top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps
    ]
