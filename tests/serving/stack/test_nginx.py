"""What nginx itself answers has the API's shape, and hostile clients meet its limits before the servers'."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
PATIENCE = 60.0
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """A server that reads a request, and answers only if its path is /error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            kept = []
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    kept.append(peer)
                    if peer.recv(2**16).startswith(b"GET /error"):
                        peer.sendall(b"HTTP/1.1 503 x\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe-apis")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, upstream: int) -> Iterator[str]:
    run = tmp_path_factory.mktemp("nginx")
    (run / "nginx").mkdir()
    port = free_port()
    names = {"RUN": str(run), "PORT": str(port), "API_1_PORT": str(upstream), "API_2_PORT": str(upstream)}
    text = re.sub("@([A-Z0-9_]+)@", lambda found: names[found[1]], CONFIGURATION.read_text(encoding="utf-8"))
    text = text.replace("proxy_read_timeout 600s", "proxy_read_timeout 1s").replace("timeout 10s", "timeout 1s")
    text = text.replace("max_fails=1", "max_fails=0")  # the one that never answers stays in use
    (run / "nginx.conf").write_text(text, encoding="utf-8")
    command = [str(NGINX), "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert process.poll() is None and time.monotonic() < end, "nginx does not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "code"),
    [
        ("/never", {}, b"", 504, "timeout"),
        ("/metrics", {}, b"", 404, None),
        ("/", {"x": "y" * 20_000}, b"", 431, "headers_too_large"),
        ("/" + "x" * 20_000, {}, b"", 431, "headers_too_large"),
        ("/", {}, b"x" * (2**20 + 1), 413, "body_too_large"),
    ],
)
def test_its_errors_have_the_shape_of_the_apis(
    url: str, path: str, headers: dict[str, str], body: bytes, status: int, code: str | None
) -> None:
    answer = httpx.request("POST" if body else "GET", url + path, headers=headers, content=body, timeout=PATIENCE)
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    assert ("retry-after" in answer.headers) == (status >= 500)


def test_the_servers_own_errors_pass_unchanged(url: str) -> None:
    answer = httpx.get(f"{url}/error", timeout=PATIENCE)
    assert answer.status_code == 503 and answer.text == "the-apis"


@pytest.mark.parametrize(
    "begin", [b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_request_that_does_not_end_is_cut(url: str, begin: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), PATIENCE) as peer:
        peer.sendall(begin)
        received = b""
        with suppress(ConnectionResetError):
            while piece := peer.recv(2**16):
                received += piece
    if received:
        assert b" 408 " in received and json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_no_server_at_all(tmp_path: Path, url: str, upstream: int) -> None:
    """In its own configuration: both servers are ports where nobody listens."""
    run, port = tmp_path, free_port()
    (run / "nginx").mkdir()
    names = {"RUN": str(run), "PORT": str(port), "API_1_PORT": str(free_port()), "API_2_PORT": str(free_port())}
    text = re.sub("@([A-Z0-9_]+)@", lambda found: names[found[1]], CONFIGURATION.read_text(encoding="utf-8"))
    (run / "nginx.conf").write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [str(NGINX), "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(httpx.TransportError):
                answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE)
                break
            assert process.poll() is None and time.monotonic() < end, "nginx does not start"
            time.sleep(0.05)
        assert answer.status_code == 502 and answer.json()["error"]["code"] == "unavailable"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
