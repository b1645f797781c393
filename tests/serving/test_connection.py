"""Attacks on connections, by a real server: each is refused or cut, and the others are served meanwhile."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.connection import Limits, guarded

PATIENCE = 60.0


@contextmanager
def serving(app: FastAPI, **limits: Any) -> Iterator[tuple[str, int]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        kind = guarded(Limits(**limits))
        config = uvicorn.Config(app, http=kind, ws="none", log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def app(engine: LLMEngine) -> FastAPI:
    return create_app(engine)


def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    peer = socket.create_connection(address, PATIENCE)
    peer.sendall(data)
    return peer


def until_closed(peer: socket.socket) -> bytes:
    """What the server sends before it closes; a test that waits for more than PATIENCE fails."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := peer.recv(2**16):
            received += piece
    return received


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def healthy(address: tuple[str, int]) -> bool:
    return httpx.get(f"http://{address[0]}:{address[1]}/health", timeout=PATIENCE).status_code == 200


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "endless",
    [
        (b"GET /", b"x" * 1000), (b"GET / HTTP/1.1\r\nx: ", b"x" * 1000), (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 99),
        (CHUNKED + b"1", b";x=" + b"x" * 1000), (CHUNKED + b"1\r\nx\r\n0\r\nx: ", b"x" * 1000),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n" * 99),
    ],
    ids=["path", "header", "headers", "chunk extension", "trailer", "trailers"],
)  # fmt: skip
def test_what_leads_nowhere_is_refused(app: FastAPI, endless: tuple[bytes, bytes]) -> None:
    begin, more = endless
    with serving(app) as address, connect(address, begin) as peer:
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**23:
                peer.sendall(more)
                sent += len(more)
                peer.setblocking(False)
                with suppress(BlockingIOError):
                    if peer.recv(1, socket.MSG_PEEK):
                        break
                peer.settimeout(PATIENCE)
            peer.settimeout(PATIENCE)
            assert status_and_code(until_closed(peer)) in ((431, "headers_too_large"), (400, "invalid_http"))
        assert sent < 2**23, "it went on and on"
        assert healthy(address)


def test_long_headers_are_allowed_up_to_the_limit(app: FastAPI) -> None:
    with serving(app, headers=20) as (host, port):
        for size, status in ((60_000, 200), (66_000, 431)):
            assert httpx.get(f"http://{host}:{port}/health", headers={"x": "y" * size}).status_code == status
        for count, status in ((10, 200), (30, 431)):
            headers = {f"x-{i}": "y" for i in range(count)}
            assert httpx.get(f"http://{host}:{port}/health", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("begin", "answer"),
    [
        (b"", None), (b"GET /hea", 408), (b"GET /health HTTP/1.1\r\nHost: x\r\n", 408), (b"\r\n\r\n", None),
        (HEAD + b"Content-Length: 100\r\n\r\n{", 408), (CHUNKED + b"1\r\n{\r\n", 408),
    ],
)  # fmt: skip
def test_a_request_that_does_not_end_is_cut(app: FastAPI, begin: bytes, answer: int | None) -> None:
    """Also if a byte comes now and then: data does not extend the time."""
    with serving(app, head_seconds=0.3, body_seconds=0.3) as address, connect(address, begin) as peer:
        ended = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                while not ended.wait(0.05):
                    peer.send(b"\r\n" if begin == b"\r\n\r\n" else b"1" if begin else b"")

        thread = threading.Thread(target=drip)
        thread.start()
        received = until_closed(peer)
        ended.set()
        thread.join()
        if answer is not None:
            assert status_and_code(received) == (answer, "request_timeout")
        assert healthy(address)


def test_an_idle_connection_is_closed_and_a_used_one_kept(app: FastAPI) -> None:
    with serving(app, idle_seconds=0.3) as (host, port), httpx.Client(base_url=f"http://{host}:{port}") as client:
        first = client.get("/health").extensions["network_stream"].get_extra_info("client_addr")
        assert client.get("/health").extensions["network_stream"].get_extra_info("client_addr") == first
        with connect((host, port), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
            assert until_closed(peer).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_cut(paused: Any, until: Callable[..., None]) -> None:
    """Its request would wait for ever in the middle of an answer."""
    app = create_app(paused)
    app.add_api_route("/much", lambda: "x" * 2**25)
    with serving(app, write_seconds=0.3) as address, connect(address, b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert peer.recv(10)
        with pytest.raises(ConnectionResetError):
            threading.Event().wait(1)
            while peer.recv(2**20):
                pass
            raise ConnectionResetError  # closed without a reset
        assert healthy(address)


def test_a_new_connection_takes_the_place_of_one_that_waits(app: FastAPI) -> None:
    with serving(app, connections=20) as address, ExitStack() as stack:
        waiting = [stack.enter_context(connect(address, b"GET")) for _ in range(60)]
        assert healthy(address)
        assert until_closed(waiting[0]) == b""


def test_when_all_are_being_served_the_next_is_told(paused: Any, until: Callable[..., None]) -> None:
    app = create_app(paused)
    body = json.dumps({"prompt": "x", "max_tokens": 3}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(app, connections=2) as address, ExitStack() as stack:
        served = [stack.enter_context(connect(address, request)) for _ in range(2)]
        until(lambda: len(app.state.backend.admission.streams) == 2, "both are being served")
        with connect(address) as third:
            assert status_and_code(until_closed(third)) == (503, "too_many_connections")
        paused.run_free()
        assert all(peer.recv(12) == b"HTTP/1.1 200" for peer in served)


def test_pipelining_is_bounded(paused: Any) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 3}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(create_app(paused)) as address, connect(address, request) as peer:
        assert paused.entered.wait(PATIENCE)
        with suppress(ConnectionError):
            peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            assert until_closed(peer) == b""
        paused.run_free()


def test_pipelined_requests_are_answered_in_order(app: FastAPI) -> None:
    paths = (b"health", b"nothing", b"ready")
    requests = b"".join(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    with serving(app, idle_seconds=0.3) as address, connect(address, requests) as peer:
        received = until_closed(peer)
    assert received.count(b"HTTP/1.1 ") == 3
    assert received.index(b"alive") < received.index(b"Not Found") < received.index(b'"ready"')


def test_what_is_no_http_gets_an_answer_in_the_same_shape(app: FastAPI) -> None:
    with serving(app) as address, connect(address, b"\x16\x03\x01 hello\r\n\r\n") as peer:
        assert status_and_code(until_closed(peer)) == (400, "invalid_http")


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="head_bytes must be above 0"):
        Limits(head_bytes=0)
