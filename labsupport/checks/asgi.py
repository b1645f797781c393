"""A web server without a network: runs an ASGI app, and shows each piece of a response when it is sent.

    with Server(app) as server:
        answer = server.post("/v1/completions", {"prompt": "import ", "stream": True})
        answer.wait()
        print(answer.status, answer.text)

Test clients cannot show *when* something is sent: those of httpx and Starlette return a response only when it is
complete. As under uvicorn, the app has its own event loop in its own thread; startup and shutdown are run; sending to a
client that has disconnected does nothing.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from labsupport.checks.plain import Plain, call

# a timeout is counted in slices: a process that is stopped for a while loses only one
SLICES, SLICE_SECONDS = 100, 0.02
LOOKS = 10  # per slice
START_SECONDS = 30.0  # until the app has started, else the visit begins without


def wait_until(condition: Callable[[], bool], slices: int = SLICES) -> bool:
    """Whether ``condition`` became true within ``slices`` slices."""
    pause = threading.Event()
    for _ in range(slices * LOOKS):
        if condition():
            return True
        pause.wait(SLICE_SECONDS / LOOKS)
    return condition()


class Answer:
    """The response to one request so far. ``text`` grows with each piece; ``ended``: no more will come.

    ``tell`` is called with each piece of news, in the server's thread: {"status", "headers"}, {"piece"}, {"ended"} and,
    when the app has returned, {"over", "error"}.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = False
        self.error: Plain = None  # what the app raised, in the form of `plain.call`
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._loop, self._gone = loop, asyncio.Event()
        self._tell = tell or (lambda news: None)

    def take(self, message: dict[str, Any]) -> None:
        """A message that the app sends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode("latin-1").lower(): value.decode("latin-1")
                            for key, value in message.get("headers", [])}  # fmt: skip
            self._tell({"status": self.status, "headers": self.headers})
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            piece = self._decoder.decode(bytes(message.get("body", b"")), last)
            self.text += piece
            self._tell({"piece": piece})
            if last:
                self._gone.set()  # to the app, a client that has its response is gone
                if (self.status or 500) < 500:  # else an error will follow
                    self.ended = True
                    self._tell({"ended": True})

    def end(self, error: Plain) -> None:
        """The app has returned, or raised ``error``."""
        self.error = error
        self.status = 500 if self.status is None else self.status  # also for an app that returns without a response
        self.ended = True
        self._tell({"over": True, "status": self.status, "error": error})

    def wait(self, slices: int = SLICES) -> bool:
        """Whether it ended within ``slices`` slices."""
        return wait_until(lambda: self.ended, slices)

    def disconnect(self) -> None:
        """The client disconnects."""
        self._loop.call_soon_threadsafe(self._gone.set)


class Server:
    """Serves ``app`` inside a ``with`` block. ``startup_error``: what the app raised when it started, or None."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        # errors of forgotten tasks are not for the notebook
        self.loop.set_exception_handler(lambda loop, context: None)
        self.startup_error: Plain = None
        self.thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._state: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: list[Answer] = []
        self._to_lifespan: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._started, self._stopped = threading.Event(), threading.Event()
        self._lifespan: asyncio.Task[None] | None = None

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, body: Any) -> Answer:
        """``body`` is sent as JSON; bytes are sent as they are."""
        return self.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def send(
        self, method: str, path: str, body: bytes = b"", tell: Callable[[dict[str, Any]], None] | None = None
    ) -> Answer:
        """Send a request, and return at once."""
        answer = Answer(self.loop, tell)
        self._answers.append(answer)
        headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
        if body:
            headers.append((b"content-type", b"application/json"))
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000),
            "state": self._state.copy(),
        }  # fmt: skip
        self.loop.call_soon_threadsafe(self._spawn, self._answer(scope, body, answer))
        return answer

    def __enter__(self) -> Server:
        self.thread.start()
        self._started.wait(START_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        """Every client disconnects, the app shuts down, and what it leaves running is cancelled."""
        ending: Future[None] = asyncio.run_coroutine_threadsafe(self._end(), self.loop)
        wait_until(ending.done)  # an app that blocks the loop forever keeps its thread until the process ends
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(SLICES * SLICE_SECONDS)

    # In the server's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._lifespan = self.loop.create_task(self._live())
        with contextlib.suppress(SystemExit):
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, scope: dict[str, Any], body: bytes, answer: Answer) -> None:
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await answer._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await asyncio.sleep(0)
            if not answer._gone.is_set():
                answer.take(message)

        error: Plain = None
        try:
            await self.app(scope, receive, send)
        except Exception as raised:
            error = call(_reraise, raised)[0]["raised"]
        answer.end(error)

    async def _live(self) -> None:
        """The lifespan protocol. An app that does not support it has nothing to start."""

        async def send(message: dict[str, Any]) -> None:
            (self._started if "startup" in message["type"] else self._stopped).set()

        self._to_lifespan.put_nowait({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self.app(scope, self._to_lifespan.get, send)
        except Exception as error:
            if not self._started.is_set() or not self._answers:
                self.startup_error = call(_reraise, error)[0]["raised"]
        finally:
            self._started.set()
            self._stopped.set()

    async def _end(self) -> None:
        for answer in self._answers:
            answer._gone.set()
        self._to_lifespan.put_nowait({"type": "lifespan.shutdown"})
        for _ in range(SLICES // 3 * LOOKS):
            if self._stopped.is_set() and not self._tasks:
                break
            await asyncio.sleep(SLICE_SECONDS / LOOKS)
        left = asyncio.all_tasks(self.loop) - {asyncio.current_task()}  # type: ignore[arg-type]
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1) if left else None


def _reraise(error: Exception) -> None:
    raise error
