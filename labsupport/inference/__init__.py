"""Chapter 4, an inference engine: one idea a file. Names below are imported when first used: this import is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.inference.detokenize import Detokenizer, TextStream
    from labsupport.inference.engine import LLMEngine
    from labsupport.inference.memory import block_bytes, blocks_that_fit
    from labsupport.inference.packed import PackedBatch
    from labsupport.inference.request import Request, RequestOutput, RequestStatus, RequestTimes
    from labsupport.inference.sampling import SamplingParams, sample_tokens, token_logprobs
    from labsupport.inference.scheduler import Plan, Scheduled, Scheduler
    from labsupport.inference.simulate import (
        Phase,
        RequestResult,
        SimRequest,
        Simulation,
        Step,
        affine_cost,
        compare,
        poisson_requests,
        requests_at_once,
        trace_requests,
    )
    from labsupport.inference.stats import EngineStats

_SUBMODULES = {
    "detokenize": (
        "Detokenizer",
        "TextStream",
    ),
    "engine": ("LLMEngine",),
    "memory": (
        "block_bytes",
        "blocks_that_fit",
    ),
    "packed": ("PackedBatch",),
    "request": (
        "Request",
        "RequestOutput",
        "RequestStatus",
        "RequestTimes",
    ),
    "sampling": (
        "SamplingParams",
        "sample_tokens",
        "token_logprobs",
    ),
    "scheduler": (
        "Plan",
        "Scheduled",
        "Scheduler",
    ),
    # its function `simulate` has the name of its file, which a package can give to one of them only
    "simulate": (
        "Phase",
        "RequestResult",
        "SimRequest",
        "Simulation",
        "Step",
        "affine_cost",
        "compare",
        "poisson_requests",
        "requests_at_once",
        "trace_requests",
    ),
    "stats": ("EngineStats",),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "Detokenizer",
    "EngineStats",
    "LLMEngine",
    "PackedBatch",
    "Phase",
    "Plan",
    "Request",
    "RequestOutput",
    "RequestResult",
    "RequestStatus",
    "RequestTimes",
    "SamplingParams",
    "Scheduled",
    "Scheduler",
    "SimRequest",
    "Simulation",
    "Step",
    "TextStream",
    "affine_cost",
    "block_bytes",
    "blocks_that_fit",
    "compare",
    "poisson_requests",
    "requests_at_once",
    "sample_tokens",
    "token_logprobs",
    "trace_requests",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
