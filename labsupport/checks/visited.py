"""Checks of a program that runs, such as a server: they talk to it through a pipe.

What a function returns can be judged wherever it was computed. What a *server* does is a sequence of events, and who
writes the events down must not be the server. So the engine behind the student's app, its recorder, the clients in
front of the app and their clock are on one side of a `Channel`, and on the other is only the app:

    host(answer, channel)      untrusted   runs the app, and passes on what it says: calls of the engine, HTTP responses
    visit(channel, inputs)     trusted     is the engine and the clients; returns plain values about what came
    judge(inputs, values)      trusted     as in every check

A grader runs `host` in a sandbox and `visit` outside. Code inside can send whatever it likes through the channel; but a
forged message is one more thing that the server said, and a server that says the right things at the right time is a
right one. In a notebook both sides are threads of the kernel: there is nobody to protect but oneself.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from labsupport.checks.channel import Channel, Message, channels
from labsupport.checks.check import Answer, Check, Inputs, silence
from labsupport.checks.plain import Plain


class VisitedCheck(Check):
    """A check with `host` and `visit` in place of `run`."""

    @abstractmethod
    def host(self, answer: Mapping[str, Callable[..., Any]], channel: Channel) -> None:
        """Serve the student's functions until the other end says that it has seen enough, or is gone."""

    @abstractmethod
    def visit(self, channel: Channel, inputs: Mapping[str, Any]) -> Plain:
        """Talk to `host`, and return plain values. Raises `channel.Closed` if it ends in the middle."""

    def attend(self, namespace: Mapping[str, Any], channel: Channel, hello: Message) -> None:
        """In a process of its own: say ``hello``, then `host` the functions of ``namespace``."""
        missing = [name for name in self.needs if not callable(namespace.get(name))]
        try:
            channel.send(hello | {"missing": missing[0]} if missing else hello)
            if not missing:
                with silence():
                    self.host({name: namespace[name] for name in self.needs}, channel)
        finally:
            channel.retire()

    def receive(self, channel: Channel, inputs: Inputs, hello: Message) -> Plain:
        """The other end of `attend`: the values to judge."""
        if "missing" in hello:
            return {"missing": str(hello["missing"])[:100]}
        return self.visit(channel, inputs)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        """Both ends in this process."""
        ours, theirs = channels()
        host = threading.Thread(target=self.host, args=(answer, theirs), name="host", daemon=True)
        host.start()
        try:
            return self.visit(ours, inputs)
        finally:
            ours.close()
            host.join(5)
            theirs.close()
