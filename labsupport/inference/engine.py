"""The engine: requests in, tokens out, one forward pass a step for all that run.

    engine = LLMEngine(load_lm("tiny"))
    outputs = engine.generate(["The with statement", "import "], SamplingParams(max_tokens=32, temperature=0.0))

or, request by request and token by token:

    engine.add_request("The with statement", SamplingParams(max_tokens=32))
    while engine.has_unfinished:
        for output in engine.step():
            print(output.request_id, output.text)
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.inference.fast.fused import FusedLlama
from labsupport.inference.memory import can_copy, default_num_blocks, on_device
from labsupport.inference.packed import PackedBatch
from labsupport.inference.request import Request, RequestOutput
from labsupport.inference.sampling import SamplingParams, sample_tokens, token_logprobs
from labsupport.inference.scheduler import Plan, Scheduler
from labsupport.inference.stats import EngineStats
from labsupport.kvcache import PagedKVCache, QuantizedPagedKVCache
from labsupport.lm import LanguageModel, Llama

Prompt = str | Sequence[int]


class LLMEngine:
    """Continuous batching over a paged cache. For one thread: a server calls it from one place.

    Args:
        lm: model and tokenizer, as `labsupport.lm.load_lm` gives them. A quantized model goes in with
            ``dataclasses.replace(lm, model=quantized)``.
        max_num_seqs: requests that run at a time.
        block_size: tokens in a block of the cache.
        num_blocks: blocks of the cache; None: from the memory that is free (memory.py).
        enable_prefix_caching: find the beginnings of prompts that were computed before.
        max_num_batched_tokens: tokens in a step, of prompts and of those that decode; None: 512, or `max_num_seqs`.
        max_model_len: tokens of a prompt and its output; None: the model's.
        device, dtype: where and in what precision to compute; None: the model's. Another one makes a copy.
        memory_fraction: of the memory, for weights and cache together; None: 0.9, on a CPU 0.5.
        kv_cache_bits: 8 or 4: a quantized cache (chapter 3); None: the precision of the model.
        fused: compute by fused.py; None: where it can, on a CPU in float32 with Numba, and no 4-bit cache.

    Raises:
        ValueError: a number is out of range, or the memory is too small.
    """

    def __init__(
        self,
        lm: LanguageModel,
        max_num_seqs: int = 16,
        block_size: int = 16,
        num_blocks: int | None = None,
        enable_prefix_caching: bool = True,
        *,
        max_num_batched_tokens: int | None = None,
        max_model_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_fraction: float | None = None,
        kv_cache_bits: int | None = None,
        fused: bool | None = None,
    ) -> None:
        self.lm, self.tokenizer = lm, lm.tokenizer
        self.model: Llama = on_device(lm.model, device, dtype)
        self.max_model_len = self.model.config.max_positions if max_model_len is None else max_model_len
        for name, value in (("max_num_seqs", max_num_seqs), ("block_size", block_size),
                            ("max_model_len", self.max_model_len)):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if memory_fraction is None:
            memory_fraction = 0.5 if self.device.type == "cpu" else 0.9
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be above 0 and at most 1; got {memory_fraction}")
        can_fuse = FusedLlama.supports(self.model, kv_cache_bits)
        if fused and not can_fuse:
            raise ValueError(
                "fused must be False or None here: it needs a CPU, float32, Numba and kv_cache_bits 8 or None"
            )
        self._fused = FusedLlama(self.model, pack=can_copy(self.model)) if can_fuse and fused is not False else None
        if num_blocks is None:
            num_blocks = default_num_blocks(
                self.model, block_size, max_num_seqs, self.max_model_len, memory_fraction, kv_cache_bits
            )
        sizes = self.model, num_blocks, block_size, enable_prefix_caching
        self.cache = (
            PagedKVCache.for_model(*sizes)
            if kv_cache_bits is None
            else QuantizedPagedKVCache.for_model(*sizes, bits=kv_cache_bits)
        )
        if max_num_batched_tokens is None:
            max_num_batched_tokens = max(512, max_num_seqs)
        self.scheduler = Scheduler(self.cache, max_num_seqs, max_num_batched_tokens)
        self._undelivered: list[RequestOutput] = []
        self._finished: Counter[str] = Counter()
        self._num_requests = self._num_steps = self._prompt_tokens = self._generation_tokens = 0

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return self.scheduler.has_unfinished or bool(self._undelivered)

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """The continuation of each prompt, in the order of the prompts.

        Args:
            prompts: strings or lists of token ids.
            sampling_params: one for all, or one a prompt.

        Raises:
            ValueError: a prompt is empty, too long, or holds an unknown token; not one SamplingParams a prompt.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of prompts; got one string: [{prompts[:20]!r}] is a list of one")
        prompts = list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        if len(params) != len(prompts):
            raise ValueError(f"sampling_params must be one, or one a prompt ({len(prompts)}); got {len(params)}")
        results: dict[Hashable, RequestOutput | None] = {}  # in the order of the prompts
        others = []  # of requests that were added before: the next step() tells of them
        try:
            for prompt, each in zip(prompts, params, strict=True):
                results[self.add_request(prompt, each)] = None
            while any(output is None for output in results.values()):
                for output in self.step():
                    if output.request_id not in results:
                        others.append(output)
                    elif output.finished:
                        results[output.request_id] = output
        finally:
            for request_id in results:
                self.abort(request_id)
            self._undelivered = others + self._undelivered
        return [output for output in results.values() if output is not None]

    def add_request(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: Hashable | None = None
    ) -> Hashable:
        """Queue a prompt; its outputs come from `step`. Returns its id, a new one if none is given.

        Raises:
            ValueError: the prompt is empty, too long, or holds an unknown token; the id is in use.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams; got {type(params).__name__}")
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else token_list(prompt)
        self._check_prompt(token_ids, params)
        if request_id is None:
            request_id = self._new_id()
        self.scheduler.add(Request(request_id, token_ids, params, self.tokenizer))
        if params.max_tokens == 0:
            self._undelivered.append(self._finish(request_id, "length"))
        return request_id

    def fork(
        self, request_id: Hashable, sampling_params: SamplingParams | None = None, new_id: Hashable | None = None
    ) -> Hashable:
        """Continue an unfinished request a second time, from where it stands between two steps: another sample.

        Both share their blocks, and whoever writes to a shared one gets a copy of it first. ``sampling_params``: of the
        new one, such as another seed; None: those of the first. Returns its id.

        Raises:
            ValueError: there is no such request; the id is in use; by its parameters it would have ended already.
        """
        if request_id not in self.scheduler.requests:
            raise ValueError(f"request_id must be of an unfinished request; {request_id!r} is not")
        parent = self.scheduler.requests[request_id]
        params = parent.params if sampling_params is None else sampling_params
        self._check_prompt(parent.prompt_token_ids, params)
        child = parent.fork(self._new_id() if new_id is None else new_id, params, self.tokenizer)
        self.scheduler.fork(request_id, child)
        return child.request_id

    def step(self) -> list[RequestOutput]:
        """One forward pass. The requests that got a token by it, each as it now stands.

        If it raises, all requests are aborted and nothing is held: the engine can be used again.
        """
        if not self.scheduler.has_unfinished:
            outputs: list[RequestOutput] = []
        else:
            try:
                outputs = self._step()
            except BaseException:
                self.abort_all()
                raise
        outputs, self._undelivered = self._undelivered + outputs, []
        return outputs

    def abort(self, request_id: Hashable) -> RequestOutput | None:
        """End a request between two steps, wherever it stands. What it had; None if there is no such request."""
        self._undelivered = [each for each in self._undelivered if each.request_id != request_id]
        if request_id not in self.scheduler.requests:
            return None
        return self._finish(request_id, "abort")

    def abort_all(self) -> None:
        """End all requests; no block stays in use."""
        for request_id in list(self.scheduler.requests):
            self.abort(request_id)
        for seq_id in list(self.cache.sequences):  # of a request whose admission failed half-way
            self.cache.free(seq_id)

    def stats(self) -> EngineStats:
        used = self.cache.usage()["used_blocks"]
        scheduler = self.scheduler
        return EngineStats(
            len(scheduler.running), len(scheduler.waiting), used / self.cache.num_blocks, scheduler.num_preemptions,
            scheduler.num_prefix_queries, scheduler.num_prefix_hits, self._prompt_tokens, self._generation_tokens,
            self._num_steps, dict(self._finished),
        )  # fmt: skip

    # Helpers

    @torch.no_grad()
    def _step(self) -> list[RequestOutput]:
        plan = self.scheduler.schedule()
        logits = self._forward(plan)
        sampled = [each.request for each in plan.scheduled if each.samples]
        self._num_steps += 1
        if not sampled:
            return []
        params = [request.params for request in sampled]
        uniforms = [request.next_uniform() if request.params.temperature > 0 else 0.0 for request in sampled]
        tokens = sample_tokens(logits, params, uniforms).tolist()
        logprobs = token_logprobs(logits, tokens, [each.logprobs for each in params])
        outputs = []
        for request, token, each in zip(sampled, tokens, logprobs, strict=True):
            self._prompt_tokens += 0 if request.output_token_ids else len(request.prompt_token_ids)
            self._generation_tokens += 1
            reason = request.append_token(token, each)
            outputs.append(request.output() if reason is None else self._finish(request.request_id, reason))
        return outputs

    def _forward(self, plan: Plan) -> Float[Tensor, "samples vocab"]:
        """Logits after the last token of each request whose last token is in this pass: of no others."""
        decodes = [(each.request.request_id, each.token_ids[0]) for each in plan.decodes]
        chunks = [(each.request.request_id, each.token_ids) for each in plan.chunks]
        batch = PackedBatch(self.cache, decodes, chunks)
        if self._fused is None:
            hidden = self.model.hidden_states(batch.tokens, batch)[0]
        else:
            hidden = self._fused.hidden_states(batch)
        if not plan.sample_positions:
            return hidden.new_empty(0, self.model.config.vocab_size)
        last = torch.tensor(plan.sample_positions, dtype=torch.int64, device=hidden.device)
        return (self._fused or self.model).lm_head(hidden[last]).float()

    def _finish(self, request_id: Hashable, reason: str) -> RequestOutput:
        request = self.scheduler.finish(request_id, reason)  # type: ignore[arg-type]
        self._finished[reason] += 1
        return request.output()

    def _new_id(self) -> str:
        while True:
            self._num_requests += 1
            if str(self._num_requests - 1) not in self.scheduler.requests:
                return str(self._num_requests - 1)

    def _check_prompt(self, token_ids: list[int], params: SamplingParams) -> None:
        vocab = self.model.config.vocab_size
        if not token_ids:
            raise ValueError("prompt must hold at least one token; got none")
        if min(token_ids) < 0 or max(token_ids) >= vocab:
            raise ValueError(
                f"prompt must hold tokens of 0..{vocab - 1}; got values from {min(token_ids)} to {max(token_ids)}"
            )
        if len(token_ids) + params.max_tokens > self.max_model_len:
            raise ValueError(
                f"prompt and max_tokens must together be at most max_model_len = {self.max_model_len} tokens; "
                f"got {len(token_ids)} and {params.max_tokens}"
            )


def token_list(prompt: Sequence[int]) -> list[int]:
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise ValueError(f"prompt must be a string or token ids; got {prompt!r:.60}") from None
