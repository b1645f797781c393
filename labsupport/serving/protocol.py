"""What clients may send and what they get: OpenAI's completions and chat, as far as this engine supports them.

Types are strict ("5" is not a number) and unknown fields are refused, as OpenAI does: a misspelt ``max_token`` must not
be ignored. Fields of OpenAI's and vLLM's that this server lacks are accepted with values that ask for nothing, and else
refused as unsupported (fields.py). Those after "beyond OpenAI's" have vLLM's names: the `openai` client sends them by
``extra_body``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labsupport.serving.fields import LABEL, Lacking, Only

MAX_CHOICES = 128  # of one request: its prompts times n
MAX_MESSAGES = 1024

_Text = Annotated[str, Field(max_length=1_000_000)]
_Prompt = Annotated[str, Field(min_length=1, max_length=1_000_000)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(min_length=1)]
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Field(max_length=16)]
_TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # JSON's keys are strings
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Label = Annotated[str | None, Field(max_length=1024, description=LABEL)]
_TOOLS = "tool calls"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    include_usage: bool | None = False
    include_obfuscation: bool | None = False  # padding against eavesdroppers: accepted, but not added
    continuous_usage_stats: bool | None = False  # vLLM's: usage so far in each chunk, if usage is included at all


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
    frequency_penalty: _Penalty | None = 0.0
    presence_penalty: _Penalty | None = 0.0
    logit_bias: Annotated[dict[_TokenName, _Bias], Field(max_length=1024)] | None = None
    user: _Label = None
    # beyond OpenAI's
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = 0
    ignore_eos: bool | None = False
    stop_token_ids: Annotated[list[_Token], Field(max_length=64)] | None = None
    request_id: _Label = None
    min_p: Annotated[Any, Only(0)] = None
    length_penalty: Annotated[Any, Only(1)] = None
    use_beam_search: Annotated[Any, Only(False, what="beam search")] = None
    skip_special_tokens: Annotated[Any, Only(True)] = None
    spaces_between_special_tokens: Annotated[Any, Only(True, False)] = None
    include_stop_str_in_output: Annotated[Any, Only(False)] = None
    add_special_tokens: Annotated[Any, Only()] = None
    truncate_prompt_tokens: Annotated[Any, Only()] = None
    prompt_logprobs: Annotated[Any, Only()] = None
    bad_words: Annotated[Any, Only([])] = None
    allowed_token_ids: Annotated[Any, Only()] = None
    structured_outputs: Annotated[Any, Only(what="structured output")] = None
    guided_json: Annotated[Any, Only(what="structured output")] = None
    guided_regex: Annotated[Any, Only(what="structured output")] = None
    guided_choice: Annotated[Any, Only(what="structured output")] = None
    guided_grammar: Annotated[Any, Only(what="structured output")] = None
    response_format: Annotated[Any, Only({"type": "text"}, what="structured output")] = None
    return_token_ids: Annotated[Any, Only(False)] = None
    return_tokens_as_token_ids: Annotated[Any, Only(False)] = None
    priority: Annotated[Any, Only(0)] = None
    cache_salt: Annotated[Any, Only()] = None


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
    suffix: Annotated[Any, Only("")] = None


class TextPart(_Request):
    type: Annotated[Literal["text"], Lacking("image_url", "input_audio", "file", "refusal", "video_url", "audio_url")]
    text: _Text


class Message(_Request):
    """``content``: null only for an assistant. The rest is what an answer of this server holds, put back unchanged."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], Lacking("tool", "function")]
    content: _Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(...)
    name: Annotated[Any, Only(what="names (the chat template has no place for them)")] = None
    refusal: Annotated[Any, Only("")] = None
    annotations: Annotated[Any, Only([])] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only(what=_TOOLS)] = None
    tool_calls: Annotated[Any, Only([], what=_TOOLS)] = None
    tool_call_id: Annotated[Any, Only(what=_TOOLS)] = None
    reasoning: Annotated[Any, Only("")] = None
    reasoning_content: Annotated[Any, Only("")] = None

    @model_validator(mode="after")
    def _content_is_there(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("content must be text; only an assistant's may be null")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(_Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    safety_identifier: _Label = None
    prompt_cache_key: _Label = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16, description=LABEL)] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only("none", "auto", what=_TOOLS)] = None
    functions: Annotated[Any, Only([], what=_TOOLS)] = None
    tool_choice: Annotated[Any, Only("none", "auto", what=_TOOLS)] = None
    tools: Annotated[Any, Only([], what=_TOOLS)] = None
    parallel_tool_calls: Annotated[Any, Only(True, False)] = None
    modalities: Annotated[Any, Only(["text"])] = None
    moderation: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    prompt_cache_options: Annotated[Any, Only()] = None
    prompt_cache_retention: Annotated[Any, Only("in_memory")] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
    store: Annotated[Any, Only(False)] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None
    # beyond OpenAI's
    add_generation_prompt: Annotated[Any, Only(True)] = None
    continue_final_message: Annotated[Any, Only(False)] = None
    chat_template: Annotated[Any, Only()] = None
    chat_template_kwargs: Annotated[Any, Only({})] = None
    documents: Annotated[Any, Only([])] = None
    echo: Annotated[Any, Only(False)] = None
