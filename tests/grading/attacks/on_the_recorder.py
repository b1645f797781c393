"""Attacks on the checks that visit a server: on recorder, clock, web server, and the pipe to the other side.

What is inside is the host of the app and a proxy of the engine. An attack that turns them into a server that does
everything right would earn its points: it would be a right server. These try to earn them in other ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from attacks.world import ROOT, World, add

EXERCISE = "ex06_inference_api"
WRONG_APP = """
import fastapi
def create_app(engine):
    return fastapi.FastAPI()
"""
# What the checks would like to read, had they been written down in here.
GOOD = {
    "made": {"returned": None}, "callable": True, "described": "", "startup": None, "overlaps": [], "on_loop": False,
    "got": [], "asked": [], "late": None, "largest_batch": 9, "stepped": True, "left": 0, "early": [], "gone": True,
    "kept": 0, "reasons": {}, "scrapes": {}, "passed": True, "points": 20,
}  # fmt: skip


def server(*statuses: str) -> Callable[[Callable[[World], str]], Callable[[World], str]]:
    """Register a function that returns the code which follows a wrong app in its cell."""

    def register(function: Callable[[World], str]) -> Callable[[World], str]:
        def write(world: World, student: str) -> None:
            read = json.loads((ROOT / "exercises" / f"{EXERCISE}.ipynb").read_text(encoding="utf-8"))
            for cell in read["cells"]:
                if cell["id"] == "answer-app":
                    cell["source"] = f"{WRONG_APP}\nGOOD = {GOOD!r}\n{function(world)}"
            world.submit(student, read, EXERCISE)

        add(function.__name__, write, statuses)
        return function

    return register


broken = partial(server, "failed", "exited", "timeout", "output limit", "not attempted")


@server()
def rewrite_the_recorder(world: World) -> str:
    return """
import sys, types
from labsupport.checks import ex06, hosting, stand_in_engine, visited
class Recorder:
    held, on_loop, overlaps, seen, requests, largest_batch = False, False, [], [], {}, 9
    def __init__(self, *arguments, **options): pass
    def __getattr__(self, name): return lambda *arguments, **options: True
class Visit(Recorder):
    outcome = GOOD
for name, kind in (("recorder", "RecordedEngine"), ("visit", "Visit")):
    module = types.ModuleType(f"labsupport.checks.{name}")
    setattr(module, kind, Recorder if name == "recorder" else Visit)
    sys.modules[module.__name__] = module
for check in ex06.EXERCISE.checks:
    type(check).visit = type(check).receive = lambda self, *arguments: GOOD
    type(check).judge = type(check).meet = lambda self, *arguments: None
visited.VisitedCheck.run = lambda self, answer, inputs: GOOD
stand_in_engine.StandInEngine.kept = lambda self: 0
stand_in_engine.StandInEngine._ask = lambda self, function, **arguments: []
"""


@server()
def return_the_record_from_observe(world: World) -> str:
    return """
from labsupport.checks.check import Check
Check.observe = lambda self, namespace, inputs: GOOD
"""


@broken()
def stop_the_clock(world: World) -> str:
    return """
import time
from labsupport.checks import hosting
hosting.Clock.run = lambda self: None
time.monotonic = time.time = time.perf_counter = lambda: 0.0
hosting.monotonic = hosting.process_time = hosting.thread_time = lambda: 0.0
"""


@broken()
def wind_the_clock_forward(world: World) -> str:
    return """
from labsupport.checks import hosting
def run(self):
    while not self.over.is_set():
        for heard in range(100_000):
            self.channel.send({"tick": heard, "passed": 1e9, "busy": -1e9, "waited": float("nan")})
hosting.Clock.run = run
"""


@broken()
def answer_in_place_of_the_app(world: World) -> str:
    return """
from labsupport.checks import asgi, hosting
CHOICE = '{"index": 0, "text": " os", "finish_reason": "stop"}'
TEXT = '{"id": "cmpl-1", "object": "text_completion", "choices": [' + CHOICE + "]}"
class Server:
    startup_error = thread = loop = None
    def __init__(self, app): self.thread = __import__("threading").current_thread()
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def send(self, method, path, body, tell):
        tell({"status": 200, "headers": {"content-type": "application/json"}})
        tell({"piece": TEXT, "ended": True})
        tell({"over": True, "error": None})
hosting.Server = asgi.Server = Server
hosting._Host.do_wake = lambda self: None
"""


@broken()
def patch_the_json_and_the_channel(world: World) -> str:
    return """
import json
from labsupport.checks import channel
send = channel.Channel.send
def better(self, message):
    for name, value in {"status": 200, "overlaps": [], "on_loop": False, "kept": 0, "error": None}.items():
        if name in message:
            message[name] = value
    send(self, message)
channel.Channel.send = better
json.loads = lambda *arguments, **options: GOOD
"""


@server()
def look_for_the_continuations_in_memory(world: World) -> str:
    """With these it would need no engine: {"prompt": "..."} is in each request, the text that follows is not."""
    return """
import gc, fastapi
def known():
    for each in gc.get_objects():
        if type(each) is dict and len(each) < 9:
            for key, value in list(each.items()):
                if type(key) is type(value) is str and len(value) >= 10 and key[-2:].isdigit() and key[-3] == " ":
                    yield key, value
def create_app(engine):
    app = fastapi.FastAPI()
    @app.post("/v1/completions")
    def completions(body: dict):
        text = dict(known())[body["prompt"]]
        return {"id": body["prompt"], "object": "text_completion",
                "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}
    return app
"""


FORGE = """
import json, os, socket, struct
from labsupport.checks.plain import encode
def say(*messages):
    for message in messages:
        try:
            os.write(4, message if isinstance(message, bytes) else json.dumps(message).encode() + b"\\n")
        except OSError: pass
def values(index, payload):
    os.write(3, struct.pack("<cIQ", b"v", index, len(payload)) + payload)
"""


@broken()
def forge_the_record_as_values(world: World) -> str:
    return f"""{FORGE}
for index in range(7):
    values(index, encode(GOOD))
"""


@broken()
def forge_the_record_and_go(world: World) -> str:
    return f"""{FORGE}
for index in range(7):
    values(index, encode(GOOD))
os.write(3, struct.pack("<cIQ", b"d", 0, 0))
os._exit(0)
"""


@broken()
def say_that_it_is_missing_and_more(world: World) -> str:
    return f"""{FORGE}
say(*({{"check": index, "missing": "create_app", **GOOD}} for index in range(7)))
"""


@broken()
def answers_before_they_are_asked_for(world: World) -> str:
    return f"""{FORGE}
say({{"check": 0}}, {{"made": {{"returned": None}}, "callable": True, "described": "", "startup": None}})
answer = {{"status": 200, "headers": {{}}, "piece": "", "over": True, "error": None}}
say(*({{"answer": number, **answer}} for number in range(9)))
"""


@broken()
def calls_that_no_engine_knows(world: World) -> str:
    return f"""{FORGE}
say({{"check": 1}}, {{"call": 0, "function": "_finish", "arguments": {{"name": "0"}}, "on_loop": False}})
say({{"call": [], "function": "add_request", "arguments": {{"prompt": 7}}, "on_loop": 3}}, {{"kept": "many"}})
"""


@broken()
def messages_that_break_the_reader(world: World) -> str:
    return f"""{FORGE}
say(b"[" * 100_000 + b"\\n", b"\\xff\\xfe\\n", b"NaN\\n", b"[]\\n", b"\\n", b'{{"check": 1e400}}\\n')
"""


@broken()
def flood_the_channel(world: World) -> str:
    return f"""{FORGE}
for _ in range(10_000):
    say(b"x" * 60_000)
"""


@broken()
def never_read_the_channel(world: World) -> str:
    return """
import time
from labsupport.checks import hosting
hosting._Host.run = lambda self: time.sleep(1e6)
"""


@broken()
def close_the_channel(world: World) -> str:
    return """
import os
os.close(4)
"""


@broken()
def shut_the_channel_down_while_it_is_visited(world: World) -> str:
    return """
import os
def create_app(engine):
    engine._channel.close()
    return fastapi.FastAPI()
"""
