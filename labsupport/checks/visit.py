"""The trusted side of a check that visits an app: the engine behind the app, the clients in front of it, and the clock.

    visit = Visit(channel, answers)
    if visit.start():
        got = visit.post("/v1/completions", {"prompt": "import "})
        visit.wait(lambda: got.ended)
    visit.stop()

Everything happens in one thread, in `wait`: it reads what the app's process says, and answers its calls of the engine.
It gives up when that process has nothing left to do, not after a time: see `hosting.Clock`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from labsupport.checks.channel import Channel, Closed, Message
from labsupport.checks.plain import Plain
from labsupport.checks.recorder import RecordedEngine

QUIET = 20  # ticks in a row in which the app's process did nothing: nothing more will come
IDLE = 0.06  # of a tick's time: a process that computes less does nothing
AWAKE_SECONDS = 3.0  # of the process's own time, for an app that is never idle, such as one that polls
WALL_SECONDS = 60.0  # whatever the process says


class Got:
    """What a client has got so far. ``ended``: no more will come; ``over``: the app is done with the request, too."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = self.over = False
        self.woken = False  # it came only after the event loop was woken
        self.why = ""  # it did not come
        self.error: Plain = None

    def take(self, news: Message) -> None:
        """Raises TypeError, KeyError or ValueError for what is no news."""
        if "status" in news:
            self.status = int(news["status"])
        if "headers" in news:
            self.headers = {str(name): str(value) for name, value in news["headers"].items()}
        if "piece" in news:
            self.text += news["piece"]
        if "over" in news:
            self.over, self.error = True, news["error"]
        self.ended |= "ended" in news or self.over

    def plain(self) -> Plain:
        return {"status": self.status, "headers": self.headers, "text": self.text, "ended": self.ended,
                "error": self.error, "woken": self.woken, "why": self.why}  # fmt: skip


class Visit:
    """One visit to one app. What goes wrong with the app itself is in ``outcome``."""

    def __init__(
        self, channel: Channel, answers: Mapping[str, str], max_num_seqs: int = 8, first_tokens: int = 1
    ) -> None:
        self.outcome: dict[str, Plain] = {}
        self.engine = RecordedEngine(answers, self._reply, max_num_seqs, first_tokens=first_tokens)
        self._channel = channel
        self._said = 0
        self._got: list[Got] = []
        self._kept: int | None = None
        self._stopped = False

    def start(self) -> bool:
        """Whether there is an app, and it has started."""
        self._say("make", max_num_seqs=self.engine.max_num_seqs, max_model_len=self.engine.max_model_len)
        if not self.wait(lambda: "made" in self.outcome):
            self.outcome |= {
                "made": {"returned": None},
                "callable": True,
                "described": "",
                "startup": None,
                "stuck": True,
            }
            return False
        return self.outcome["callable"] is True and self.outcome["startup"] is None

    def get(self, path: str) -> Got:
        return self._request("GET", path, b"")

    def post(self, path: str, body: Any) -> Got:
        """``body`` is sent as JSON; bytes are sent as they are."""
        return self._request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def finish(self, *got: Got) -> bool:
        """Whether all have their answers. Where they do not, see whether waking the event loop helps."""
        late = [] if self.wait(lambda: all(each.ended for each in got)) else [each for each in got if not each.ended]
        if late and self.wake(lambda: late[0].ended):
            for each in late:
                each.woken = True
            return False
        for each in late:
            each.why = "" if each.ended else self._why()
        return not late

    def wake(self, condition: Callable[[], bool]) -> bool:
        """Whether ``condition`` becomes true once the event loop is woken, with nothing for it to do."""
        self._say("wake")
        return self.wait(condition, QUIET // 4)

    def leave(self, got: Got) -> None:
        """The client disconnects."""
        self._say("leave", number=got.number)

    def num_kept(self, quiet: int = QUIET) -> int:
        """Requests that are over, and of which the app still holds something, as the app's process says.

        Collects that process's garbage, which ends the generators that nobody holds any more.
        """
        self._kept = None
        self._say("count")
        self.wait(lambda: self._kept is not None, quiet)
        return self._kept or 0

    def wait(self, condition: Callable[[], bool], quiet: int = QUIET) -> bool:
        """Whether ``condition`` became true before the app's process was idle for ``quiet`` ticks in a row."""
        idle, awake, end = 0, 0.0, monotonic() + WALL_SECONDS
        while not condition():
            message = self._channel.receive(max(0.0, end - monotonic()))
            if message is None:
                return False
            if "tick" not in message:
                self._take(message)
                idle = 0
            elif message["tick"] == self._said:
                passed, busy, waited = (float(message[key]) for key in ("passed", "busy", "waited"))
                idle = idle + 1 if busy + waited < IDLE * passed else 0
                awake += max(busy, min(passed - waited, 0.1))
                if idle >= quiet or awake >= AWAKE_SECONDS * quiet / QUIET:
                    return condition()
        return True

    def stop(self) -> None:
        """All clients leave, and the app shuts down."""
        with contextlib.suppress(Closed):
            self.engine.open()
            self._say("stop")
            self.wait(lambda: self._stopped)
            self._say("end")
        self.outcome |= {"overlaps": sorted(set(self.engine.overlaps)), "on_loop": self.engine.on_loop}

    def _why(self) -> str:
        """Why an answer did not come, as far as the engine can tell."""
        if not self.engine.seen:
            return "engine.add_request() was never called"
        if self.engine.held:
            return "engine.step() has not returned yet"
        if self.engine.requests:
            return "engine.has_unfinished is true, and nothing calls engine.step()"
        return "the engine has nothing left to do: is each output handed to the request it belongs to?"

    def _request(self, method: str, path: str, body: bytes) -> Got:
        got = Got(len(self._got))
        self._got.append(got)
        self._say("request", number=got.number, method=method, path=path, body=body.decode("latin-1"))
        return got

    def _reply(self, number: int, **reply: Any) -> None:
        self._say("reply", number=number, unfinished=bool(self.engine.requests), **reply)

    def _say(self, do: str, **more: Any) -> None:
        self._said += 1
        self._channel.send({"do": do, **more})

    def _take(self, message: Message) -> None:
        """Anything but a tick. Nothing in it is believed."""
        try:
            if "call" in message:
                self.engine.call(message["call"], message["function"], message["arguments"], message["on_loop"] is True)
            elif "answer" in message:
                self._got[message["answer"]].take(message)
            elif "made" in message:
                self.outcome |= {key: message[key] for key in ("made", "callable", "described", "startup")}
            elif "kept" in message:
                self._kept = int(message["kept"])
            else:
                self._stopped |= "stopped" in message
        except Closed:
            raise
        except Exception as error:  # whatever a message may hold that no `hosting` sends
            self._channel.fail(f"{type(error).__name__}: {error}")
