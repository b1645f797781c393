"""A request on its way through the queue, and what a worker gets from the queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from labsupport.inference.sampling import SamplingParams


@dataclass(frozen=True)
class Job:
    """One choice of a request.

    Attributes:
        id: unique, whatever clients call their requests.
        server: the API server to whose stream of replies the outputs go.
        intermediate: whether outputs before the last are wanted.
        entry, tries: set when a worker takes it: its id in the stream, and how often it has been taken, now included.
    """

    id: str
    request_id: str
    server: str
    prompt: list[int]
    params: SamplingParams
    intermediate: bool = True
    entry: str = ""
    tries: int = 0

    def to_json(self) -> str:
        fields = asdict(self)
        del fields["entry"], fields["tries"]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, entry: str, tries: int) -> Job:
        """
        Raises:
            ValueError: `to_json` did not write it, or another version's did.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "params": SamplingParams(**fields["params"])}, entry=entry, tries=tries)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"job must be what to_json() gives: {error}") from None


@dataclass(frozen=True)
class Claimed:
    """What a worker got.

    Attributes:
        jobs: to run.
        unreadable: (entry, text) of what is not a job.
        parked: to give up: they were tried too often.
        suspects: how many wait for an idle worker to make their last try.
    """

    jobs: list[Job]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    parked: list[Job] = field(default_factory=list)
    suspects: int = 0


def parse_jobs(entries: Sequence[Sequence[Any]]) -> tuple[list[Job], list[tuple[str, str]]]:
    """From (entry, text, tries): jobs, and (entry, text) of what cannot be read."""
    good, bad = [], []
    for entry, text, tries in entries:
        try:
            good.append(Job.from_json(text, entry, tries))
        except ValueError:
            bad.append((entry, text))
    return good, bad
