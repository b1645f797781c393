"""What a client experienced: when the tokens of its request came, counted from its arrival at the server.

Three latencies that must not be mixed: time to first token, time between tokens, and time to the end. The clock starts
at arrival, not when the engine takes up the request: users of an overloaded server mostly wait in its queue.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from labsupport.inference.request import RequestOutput


@dataclass
class Observation:
    """In seconds of `time.monotonic`.

    Attributes:
        inter_token: gaps between tokens, of all choices; only if they are streamed.
        finished: the last output of each choice.
    """

    arrival: float = field(default_factory=time.monotonic)
    time_to_first_token: float | None = None
    inter_token: list[float] = field(default_factory=list)
    finished: list[RequestOutput] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    streamed: bool = False
    choices: int = 1
    _last: dict[int, float] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def update(self, index: int, output: RequestOutput) -> None:
        """Choice ``index`` has got as far as ``output``."""
        now, seen = time.monotonic(), self._seen.get(index, 0)
        new = len(output.token_ids) - seen
        if new > 0:
            first = now if self.streamed else output.times.first_token or now
            if self.time_to_first_token is None or first - self.arrival < self.time_to_first_token:
                self.time_to_first_token = max(0.0, first - self.arrival)
            if self.streamed:
                if seen:  # several tokens at once are one wait for the client
                    self.inter_token.append(now - self._last[index])
                self._last[index] = now
            self._seen[index] = seen + new
            self.completion_tokens += new
        if output.finished:
            self.finished.append(output)
