"""What belongs to one HTTP request while it is served."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from labsupport.serving.observe import Observation


@dataclass
class Context:
    """``request_id``: the client's own, or a new one. ``engine_id``: always new: no two requests share it."""

    request_id: str
    arrival: float
    engine_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    observation: Observation | None = None
    client_gone: bool = False

    def observe(self, prompt_tokens: int, streamed: bool, choices: int) -> Observation:
        self.observation = Observation(self.arrival, prompt_tokens=prompt_tokens, streamed=streamed, choices=choices)
        return self.observation
