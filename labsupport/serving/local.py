"""`serving`: an app on a port of this machine, for as long as a block of code lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from labsupport.serving.server import listen


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve ``app`` on a free port, in a thread of this process; gives its address, "http://127.0.0.1:PORT".

    At the end of the block the server finishes running requests, and the engine's thread ends with it.

    Raises:
        RuntimeError: the app does not start.
    """
    listener = listen("127.0.0.1", 0)  # port 0: the system picks a free one
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))

    def run() -> None:
        with suppress(SystemExit):  # of an app that does not start
            server.run(sockets=[listener])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the app ended before it had started")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
