"""Other engines behind one interface: their tokens where they are installed, a reason where they are not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from labsupport.checkpoints import write_gguf
from labsupport.inference import adapters
from labsupport.inference.adapters import ADAPTERS, LlamaCpp, LlamaCppFloat, OurEngine, TransformersStatic, Vllm
from labsupport.lm import LanguageModel, corpus, load_lm

COUNTS = [5, 1, 12, 8, 3]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def some_prompts(lm: LanguageModel) -> list[list[int]]:
    text = lm.tokenizer.encode(corpus("evaluation"))
    return [text[300 * i : 300 * i + length] for i, length in enumerate((3, 40, 11, 25, 1))]


def test_transformers_gives_our_tokens(lm: LanguageModel) -> None:
    pytest.importorskip("transformers")
    prompts = some_prompts(lm)
    theirs = TransformersStatic(lm, batch_size=2).generate(prompts, COUNTS)
    ours = OurEngine(lm, batch_size=2).generate(prompts, COUNTS)
    assert [each.token_ids for each in theirs] == [each.token_ids for each in ours]
    assert [each.num_tokens for each in theirs] == COUNTS
    assert [each.text for each in theirs] == [each.text for each in ours]


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    assert OurEngine.missing() is None
    assert LlamaCpp.missing() == "not installed: pip install xllamacpp or llama-cpp-python"
    assert Vllm.missing() == "not installed: pip install vllm"
    monkeypatch.setattr(adapters, "find_spec", lambda name: object() if name == "llama_cpp" else None)
    assert LlamaCpp.missing() is None and TransformersStatic.missing() is not None
    assert len({each.name for each in ADAPTERS}) == len(ADAPTERS)


def test_vllm_is_asked_for_the_same_work(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM needs a GPU: a stand-in answers with our engine, under vLLM's own names."""
    seen: dict[str, Any] = {}

    class StandIn:
        def __init__(self, model: str, **options: Any) -> None:
            seen.update(options, files={path.name for path in Path(model).iterdir()})
            self.engine = OurEngine(load_lm(model, verbose=False))

        def generate(self, prompts: list[dict[str, list[int]]], params: list[Any]) -> list[Any]:
            assert all(each.temperature == 0 and each.ignore_eos for each in params)
            done = self.engine.generate([each["prompt_token_ids"] for each in prompts], [p.max_tokens for p in params])
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(each.token_ids or ()))]) for each in done]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    prompts = some_prompts(lm)
    wanted = OurEngine(lm).generate(prompts, COUNTS)
    assert Vllm(lm, batch_size=4).generate(prompts, COUNTS) == wanted
    assert {"config.json", "model.safetensors"} <= seen["files"] and seen["max_num_seqs"] == 4


@pytest.mark.smollm2
@pytest.mark.slow
def test_llama_cpp_gives_our_tokens_in_float32() -> None:
    pytest.importorskip("xllamacpp")
    lm = load_lm("smollm2-135m", verbose=False)
    prompts = [lm.tokenizer.encode(text) for text in ("The with statement is used to", "def fib(n):\n    ")]
    theirs = LlamaCppFloat(lm, batch_size=2).generate(prompts, [6, 6])
    ours = OurEngine(lm, batch_size=2, num_blocks=64).generate(prompts, [6, 6])
    assert [each.text for each in theirs] == [each.text for each in ours]
    assert [each.num_tokens for each in theirs] == [6, 6]


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_float_gguf_is_the_model_again(tmp_path: Path) -> None:
    from gguf import GGUFReader

    from labsupport.lm.gguf_file import read_gguf_config, read_gguf_tokenizer, read_gguf_weights

    lm = load_lm("smollm2-135m", verbose=False)
    write_gguf(lm, tmp_path / "model.gguf", "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    reader = GGUFReader(tmp_path / "model.gguf")
    config = read_gguf_config(reader)
    assert config.hidden_size == lm.model.config.hidden_size and config.rope_theta == lm.model.config.rope_theta
    weights, state = read_gguf_weights(reader, config), lm.model.state_dict()
    assert weights.keys() == state.keys() - {"lm_head.weight"}
    assert all(torch.equal(weight.float(), state[name]) for name, weight in weights.items())
    text = "def f(x):\n    return 'é' + x"
    assert read_gguf_tokenizer(reader).encode(text, add_special_tokens=False).ids == lm.tokenizer.encode(text)
