from .arrivals import SimRequest, poisson_requests, requests_at_once
from .detokenize import Detokenizer, TextStream
from .engine import LLMEngine
from .memory import block_bytes, blocks_that_fit
from .packed import PackedBatch
from .plan import Plan, Scheduled
from .request import Request, RequestOutput, RequestStatus, RequestTimes
from .runner import ModelRunner
from .sampling import SamplingParams, sample_tokens, token_logprobs
from .scheduler import Scheduler
from .simulate import affine_cost, compare
from .stats import EngineStats
from .timeline import Phase, RequestResult, Simulation, Step

__all__ = [
    "Detokenizer",
    "EngineStats",
    "LLMEngine",
    "ModelRunner",
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
]
