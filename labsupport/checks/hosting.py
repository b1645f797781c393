"""The student's side of a check that visits an app: runs the app in front of a stand-in engine, and passes on events.

What comes over the channel is done at once, in the order in which it comes: make the app, send it a request, let a
client leave, wake the event loop. What happens is passed on as it happens: calls of the engine, each piece of each
response, and time (`Clock`). Everything of which a verdict is made is written down on the other side.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time, thread_time
from typing import Any

from labsupport.checks.asgi import Answer, Server
from labsupport.checks.channel import Channel, Closed, Message
from labsupport.checks.plain import call, describe
from labsupport.checks.stand_in_engine import StandInEngine

TICK_SECONDS = 0.02
MANY_THREADS = 200  # more are not looked at


def serve(create_app: Callable[..., Any], channel: Channel) -> None:
    """Host ``create_app(engine)`` until the other end says "end", or is gone."""
    host = _Host(create_app, channel)
    automatic, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()  # it could run a student's `finally` in a thread of ours, which then waits for itself
    gc.freeze()  # what is there already need not be looked through by `StandInEngine.kept`
    try:
        host.run()
    finally:
        if not frozen:
            gc.unfreeze()
        if automatic:
            gc.enable()


class _Host:
    def __init__(self, create_app: Callable[..., Any], channel: Channel) -> None:
        self.create_app, self.channel = create_app, channel
        self.engine: StandInEngine | None = None
        self.server: Server | None = None
        self.answers: dict[int, Answer] = {}
        self.clock = Clock(channel)

    def run(self) -> None:
        self.clock.start()
        try:
            while (message := self.channel.receive()) is not None and message["do"] != "end":
                self.clock.heard += 1
                getattr(self, f"do_{message.pop('do')}")(**message)
        except Closed:
            self._stop()
        finally:
            self.clock.over.set()
            if self.engine:
                self.engine.close()

    # One method for each thing to do. None may wait: the next message may be what is waited for.

    def do_make(self, max_num_seqs: int, max_model_len: int) -> None:
        self.engine = StandInEngine(self.channel, max_num_seqs, max_model_len)
        _in_a_thread(self._make)

    def do_request(self, number: int, method: str, path: str, body: str) -> None:
        def tell(news: Message) -> None:
            self._send({"answer": number, **news})

        self.answers[number] = self.server.send(method, path, body.encode("latin-1"), tell)  # type: ignore[union-attr]

    def do_leave(self, number: int) -> None:
        self.answers[number].disconnect()

    def do_reply(self, **reply: Any) -> None:
        self.engine.take(reply)  # type: ignore[union-attr]

    def do_wake(self) -> None:
        """As any request would, but without one."""
        self.server.loop.call_soon_threadsafe(lambda: None)  # type: ignore[union-attr]

    def do_count(self) -> None:
        """Collect garbage, which may run an app's `finally`, and so takes a thread; say what is still there."""
        _in_a_thread(lambda: self._send({"kept": self.engine.kept()}))  # type: ignore[union-attr]

    def do_stop(self) -> None:
        _in_a_thread(self._stop)

    # Helpers

    def _make(self) -> None:
        """The app, made in a thread that has no event loop, as a server would import it; then its start."""
        outcome, app = call(self.create_app, self.engine)
        made: Message = {"made": {"raised": outcome["raised"]} if "raised" in outcome else {"returned": None}}
        made |= {"callable": callable(app), "described": describe(outcome.get("returned")), "startup": None}
        if callable(app):
            self.server = Server(app)
            self.engine.server_thread = self.server.__enter__().thread.ident  # type: ignore[union-attr]
            made["startup"] = self.server.startup_error
        self._send(made)

    def _stop(self) -> None:
        if self.server:
            self.server.__exit__()
        self._send({"stopped": True})

    def _send(self, message: Message) -> None:
        try:
            self.channel.send(message)
        except Closed:
            if self.engine:
                self.engine.close()


class Clock(threading.Thread):
    """Tells the other side every ``TICK_SECONDS`` how long that took, and how busy this process was.

    A check must not give up because the machine is busy. So it does not look at a clock: it waits until this process
    has been idle for a number of ticks, that is, has neither computed nor waited for a processor. ``heard`` is the
    number of messages that had been read then: what was said later cannot have had an effect yet.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="clock", daemon=True)
        self.channel, self.heard = channel, 0
        self.over = threading.Event()

    def run(self) -> None:
        before, busy_before, waited_before = monotonic(), _busy(), _waited()
        while not self.over.wait(TICK_SECONDS):
            heard = self.heard
            now, busy, waited = monotonic(), _busy(), _waited()
            tick = {"passed": now - before, "busy": max(0.0, busy - busy_before),
                    "waited": max(0.0, waited - waited_before)}  # fmt: skip
            before, busy_before, waited_before = now, busy, waited
            try:
                self.channel.send({"tick": heard, **tick})
            except Closed:
                return


def _busy() -> float:
    """Seconds of processor time of this process, without this thread."""
    return process_time() - thread_time()


def _waited() -> float:
    """Seconds for which threads of this process were ready to run and had no processor; 0 where Linux does not say."""
    total, own = 0, str(threading.get_native_id())
    try:
        threads = list(Path("/proc/self/task").iterdir())
    except OSError:
        return 0.0
    for thread in threads if len(threads) <= MANY_THREADS else ():
        try:
            total += int((thread / "schedstat").read_bytes().split()[1]) if thread.name != own else 0
        except (OSError, IndexError):
            continue
    return total / 1e9


def _in_a_thread(function: Callable[[], Any]) -> None:
    threading.Thread(target=function, daemon=True).start()
