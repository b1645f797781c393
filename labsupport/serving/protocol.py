"""What clients may send and what they get: OpenAI's completions and chat, as far as this engine supports them.

Types are strict ("5" is not a number) and unknown fields are refused, as OpenAI does: a misspelt ``max_token`` must not
be ignored. Fields of OpenAI's that this server does not support are refused unless they have no effect.
Fields after "beyond OpenAI's" have vLLM's names: the `openai` client sends them by ``extra_body``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_CHOICES = 128  # of one request: its prompts times n
MAX_MESSAGES = 1024

_Text = Annotated[str, Field(max_length=1_000_000)]
_Prompt = Annotated[str, Field(min_length=1, max_length=1_000_000)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(min_length=1)]
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Field(max_length=16)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    include_usage: bool | None = False
    include_obfuscation: bool | None = False  # padding against eavesdroppers: accepted, but not added


class _Sampling(_Request):
    """What both kinds of request share."""

    model: Annotated[str, Field(max_length=256)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    stop: _Stop | _Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    # only values that have no effect are accepted
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, _Number], Field(max_length=0)] | None = None
    # beyond OpenAI's
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = 0
    ignore_eos: bool | None = False
    stop_token_ids: Annotated[list[_Token], Field(max_length=64)] | None = None


class CompletionRequest(_Sampling):
    prompt: (
        _Prompt
        | Annotated[list[_Prompt], Field(min_length=1, max_length=MAX_CHOICES)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class TextPart(_Request):
    type: Literal["text"]
    text: _Text


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: Annotated[str, Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Error(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: Error


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"] | None


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    status: str
    model: str
    num_requests_running: int
    num_requests_waiting: int
