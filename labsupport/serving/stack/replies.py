"""What a worker tells an API server about a request, and how the server puts it together again.

A reply holds the new tokens and text, and where they begin: ``at`` and ``text_at``. So if replies come twice, or again
from the start because another worker took over the request, no piece is doubled or lost: the server compares what it
already has and skips it.

A second try gives the same tokens as the first, since every job has a seed of its own. But sums of floating-point
numbers depend on what else is in the batch, so in rare cases it does not. Then what the client has not seen yet is
replaced. If it has seen the differing part, the request fails: better no text than one pieced together from two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.serving.backend import GenerationFailed, Unavailable
from labsupport.serving.stack.job import Job


def make_reply(job: Job, output: RequestOutput, sent: RequestOutput | None) -> dict[str, Any]:
    """What ``output`` adds to ``sent``, as a JSON object."""
    at, text_at = (0, 0) if sent is None else (len(sent.token_ids), len(sent.text))
    reply: dict[str, Any] = {
        "id": job.id, "try": job.tries, "at": at, "tokens": output.token_ids[at:], "text_at": text_at,
        "text": output.text[text_at:], "reason": output.finish_reason, "cached": output.num_cached_tokens,
    }  # fmt: skip
    if output.logprobs is not None:
        reply["logprobs"] = [list(each.items()) for each in output.logprobs[at:]]
    if output.prompt_logprobs is not None and not at and (output.token_ids or output.finished):
        reply["prompt_logprobs"] = [each and list(each.items()) for each in output.prompt_logprobs]
    offset = time.time() - time.monotonic()  # the monotonic clocks of two machines have nothing in common
    for name in ("first_scheduled", "first_token", "finished"):
        value = getattr(output.times, name)
        if value is not None:
            reply[name] = value + offset
    return reply


def make_error(job: Job, kind: str, message: str) -> dict[str, Any]:
    """``kind``: "invalid" (the client's fault) or "failed" (ours)."""
    return {"id": job.id, "try": job.tries, "error": kind, "message": message}


class ReplyStream:
    """One request at an API server: replies go in, outputs come out. A slow reader only gets the newest."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done = False
        self._tries = 0
        self._tokens: list[int] = []
        self._text = ""
        self._logprobs: list[dict[int, float]] = []
        self._prompt_logprobs: list[dict[int, float] | None] | None = None
        self._cached = 0
        self._reason: Any = None
        self._times = RequestTimes()
        self._shown_tokens = self._shown_text = 0  # what the reader has seen
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def next(self) -> RequestOutput:
        """Wait for something new, and return the output so far."""
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error
        self._shown_tokens, self._shown_text = len(self._tokens), len(self._text)
        return self.output()

    def output(self) -> RequestOutput:
        logprobs = None if self.job.params.logprobs is None else self._logprobs.copy()
        return RequestOutput(
            self.job.request_id, self.job.prompt, self._text, self._tokens.copy(), self._reason, logprobs,
            self._cached, self._times, self._prompt_logprobs,
        )  # fmt: skip

    def put(self, reply: dict[str, Any]) -> None:
        """Take in a reply. Ignored: what follows the last one, and what comes from a worker that lost the request."""
        if self.done or reply["try"] < self._tries:
            return
        self._tries = reply["try"]
        if "error" in reply:
            message = str(reply["message"])
            self.fail(ValueError(message) if reply["error"] == "invalid" else GenerationFailed(message))
            return
        before = len(self._tokens), len(self._text)
        try:
            self._tokens = _joined(self._tokens, reply["at"], reply["tokens"], self._shown_tokens)
            self._text = "".join(_joined(self._text, reply["text_at"], reply["text"], self._shown_text))
        except _Differs:
            self.fail(GenerationFailed("a second try gave another text than the first"))
            return
        if "logprobs" in reply:
            new = [_by_token(each) for each in reply["logprobs"]]
            self._logprobs = [*self._logprobs[: reply["at"]], *new]
        if "prompt_logprobs" in reply:
            self._prompt_logprobs = [each and _by_token(each) for each in reply["prompt_logprobs"]]
        self._cached = max(self._cached, reply["cached"])
        self._note_times(reply)
        if reply["reason"] is not None:
            self._reason, self.done = reply["reason"], True
        if self.done or (len(self._tokens), len(self._text)) != before:
            self._changed.set()

    def fail(self, error: Exception) -> None:
        self._error, self.done = error, True
        self._changed.set()

    def end(self) -> None:
        """The server stops before the request is finished."""
        if not self.done:
            self.fail(Unavailable("the server shut down before the request was finished"))

    def _note_times(self, reply: dict[str, Any]) -> None:
        offset = time.time() - time.monotonic()
        for name in ("first_scheduled", "first_token", "finished"):
            if name in reply and getattr(self._times, name) is None:
                setattr(self._times, name, max(self._times.arrival, reply[name] - offset))


class _Differs(Exception):
    """The new part contradicts what the reader has seen."""


def _joined(have: Any, at: int, new: Any, shown: int) -> Any:
    """``have``, continued by ``new`` from ``at`` on. If they differ, ``new`` wins unless the reader saw the old."""
    if at > len(have):
        raise _Differs
    overlap = min(len(have) - at, len(new))
    if have[at : at + overlap] == new[:overlap]:
        return have if overlap == len(new) else have + new[overlap:]
    first = next(i for i in range(overlap) if have[at + i] != new[i])
    if at + first < shown:
        raise _Differs
    return have[: at + first] + new[first:]


def _by_token(pairs: Sequence[Sequence[Any]]) -> dict[int, float]:
    return {int(token): value for token, value in pairs}
