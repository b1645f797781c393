"""The engine: requests in, tokens out; each step is one forward pass for all running requests.

    engine = LLMEngine(load_lm("tiny"))
    outputs = engine.generate(["The with statement", "import "], SamplingParams(max_tokens=32, temperature=0.0))

or, request by request and token by token:

    engine.add_request("The with statement", SamplingParams(max_tokens=32))
    while engine.has_unfinished:
        for output in engine.step():
            print(output.request_id, output.text)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from labsupport.inference.next_tokens import next_tokens
from labsupport.inference.prompt_logprobs import score_prompts
from labsupport.inference.request import Request, RequestOutput, check_prompt, token_list
from labsupport.inference.runner import ModelRunner
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.scheduler import Scheduler
from labsupport.inference.stats import EngineStats
from labsupport.lm import LanguageModel
from labsupport.lm.calibrate import check_model

Prompt = str | Sequence[int]


class LLMEngine:
    """Continuous batching over a paged cache. Not thread-safe: a server calls it from one thread.

    Args:
        lm: model and tokenizer, as `labsupport.lm.load_lm` gives them. A quantized model goes in with
            ``dataclasses.replace(lm, model=quantized)``.
        max_num_seqs: requests that run at the same time.
        block_size: tokens in a block of the cache.
        num_blocks: blocks of the cache; None: as many as fit the free memory (memory.py).
        enable_prefix_caching: reuse the beginnings of prompts that were computed before.
        max_num_batched_tokens: tokens in a step, prompts and decoding together; None: 512, or `max_num_seqs` if larger.
        max_model_len: tokens of a prompt and its output together, at most; None: the model's limit.
        device, dtype: where and in what precision to compute; None: the model's. Anything else makes a copy.
        memory_fraction: share of the memory for weights and cache together; None: 0.9, or 0.5 on a CPU.
        kv_cache_bits: 8 or 4 for a quantized cache (chapter 3); None: the precision of the model.
        fused: compute with the compiled twin (fast/fused.py); None: where possible, which is on a CPU in float32 with
            Numba, and without a 4-bit cache.

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
        if not (hasattr(lm, "model") and hasattr(lm, "tokenizer")):
            check_model(lm)
            raise ValueError(f"lm must be a LanguageModel, which load_lm gives; got a {type(lm).__name__}")
        self.lm, self.tokenizer = lm, lm.tokenizer
        self.runner = ModelRunner(
            lm.model, max_num_seqs, block_size, num_blocks, enable_prefix_caching, max_model_len, device, dtype,
            memory_fraction, kv_cache_bits, fused,
        )  # fmt: skip
        self.model, self.cache, self.max_model_len = self.runner.model, self.runner.cache, self.runner.max_model_len
        if max_num_batched_tokens is None:
            max_num_batched_tokens = max(512, max_num_seqs)
        self.scheduler = Scheduler(self.cache, max_num_seqs, max_num_batched_tokens)
        self._undelivered: list[RequestOutput] = []
        self._finished: Counter[str] = Counter()
        self._num_requests = self._num_steps = self._prompt_tokens = self._generation_tokens = 0

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to compute or to deliver."""
        return self.scheduler.has_unfinished or bool(self._undelivered)

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """The continuation of each prompt, in the order of the prompts.

        Args:
            prompts: strings or lists of token ids.
            sampling_params: one for all prompts, or one for each.

        Raises:
            ValueError: a prompt is empty, too long, or holds an unknown token; too few or too many SamplingParams.
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
        others = []  # outputs of requests that were added before: the next step() delivers them
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
        """Queue a prompt; `step` delivers its outputs. Returns its id, a new one if none is given.

        Raises:
            ValueError: the prompt is empty, too long, or holds an unknown token; the id is in use.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams; got {type(params).__name__}")
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else token_list(prompt)
        check_prompt(token_ids, params, self.model.config.vocab_size, self.max_model_len)
        if request_id is None:
            request_id = self._new_id()
        self.scheduler.add(Request(request_id, token_ids, params, self.tokenizer))
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            self._undelivered.append(self._finish(request_id, "length"))
        return request_id

    def fork(
        self, request_id: Hashable, sampling_params: SamplingParams | None = None, new_id: Hashable | None = None
    ) -> Hashable:
        """Continue an unfinished request a second time, from where it stands between two steps: another sample.

        The two share their blocks; a request that writes to a shared block gets its own copy first.
        ``sampling_params``: for the new request, such as another seed; None: those of the first. Returns the new id.

        Raises:
            ValueError: there is no such request; the id is in use; with its parameters it would have ended already.
        """
        if request_id not in self.scheduler.requests:
            raise ValueError(f"request_id must be of an unfinished request; {request_id!r} is not")
        parent = self.scheduler.requests[request_id]
        params = parent.params if sampling_params is None else sampling_params
        check_prompt(parent.prompt_token_ids, params, self.model.config.vocab_size, self.max_model_len)
        child = parent.fork(self._new_id() if new_id is None else new_id, params, self.tokenizer)
        self.scheduler.fork(request_id, child)
        return child.request_id

    def step(self) -> list[RequestOutput]:
        """One forward pass. Returns the requests that got a token from it, each as it now stands.

        If it raises, all requests are aborted and all blocks released: the engine can be used again.
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
        """End a request between two steps. Returns its output so far; None if there is no such request."""
        self._undelivered = [each for each in self._undelivered if each.request_id != request_id]
        if request_id not in self.scheduler.requests:
            return None
        return self._finish(request_id, "abort")

    def abort_all(self) -> None:
        """End all requests and release all blocks."""
        for request_id in list(self.scheduler.requests):
            self.abort(request_id)
        for seq_id in list(self.cache.sequences):  # of a request whose admission failed half-way
            self.cache.free(seq_id)

    def stats(self) -> EngineStats:
        scheduler, used = self.scheduler, self.cache.num_blocks - self.cache.num_free_blocks
        return EngineStats(
            len(scheduler.running), len(scheduler.waiting), used / self.cache.num_blocks, scheduler.num_preemptions,
            scheduler.num_prefix_queries, scheduler.num_prefix_hits, self._prompt_tokens, self._generation_tokens,
            self._num_steps, dict(self._finished),
        )  # fmt: skip

    # Helpers

    @torch.no_grad()
    def _step(self) -> list[RequestOutput]:
        plan = self.scheduler.schedule()
        logits = score_prompts(plan, self.runner.forward(plan))
        sampled = [each.request for each in plan.scheduled if each.samples]
        self._num_steps += 1
        outputs = []
        for request, token, each in zip(sampled, *next_tokens(logits, sampled), strict=True):
            self._prompt_tokens += 0 if request.output_token_ids else len(request.prompt_token_ids)
            if request.params.max_tokens == 0:  # it was only scored
                outputs.append(self._finish(request.request_id, "length"))
                continue
            self._generation_tokens += 1
            reason = request.append_token(token, each)
            outputs.append(request.output() if reason is None else self._finish(request.request_id, reason))
        return outputs

    def _finish(self, request_id: Hashable, reason: str) -> RequestOutput:
        request = self.scheduler.finish(request_id, reason)  # type: ignore[arg-type]
        self._finished[reason] += 1
        return request.output()

    def _new_id(self) -> str:
        while True:
            self._num_requests += 1
            if str(self._num_requests - 1) not in self.scheduler.requests:
                return str(self._num_requests - 1)
