"""What hostile clients do to the server: time of `/health` and memory, during each attack and after it.

    python benchmarks/attacks.py                      # against `labsupport serve`, which it starts
    python benchmarks/attacks.py --nginx              # the same, behind nginx with deploy/nginx.conf
    python benchmarks/attacks.py --url http://127.0.0.1:8080 --pid 1234     # against another, such as nginx

Each attack runs in a process of its own, so that it does not slow down the clock that watches. The first row is the
machine without an attack: where other programs are busy, compare with that. Memory is of the server and nginx.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

SECONDS = 8.0
Address = tuple[str, int]


def connect(address: Address, data: bytes = b"") -> socket.socket:
    peer = socket.create_connection(address, 10)
    peer.sendall(data)
    return peer


def flood(address: Address, begin: bytes, piece: bytes) -> None:
    """Send without end, in new connections whenever the server closes one: hundreds of megabytes in all."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(OSError), connect(address, begin) as peer:
            while time.monotonic() < end:
                peer.sendall(piece)


def one_header(address: Address) -> None:
    flood(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: ", b"x" * 2**16)


def many_headers(address: Address) -> None:
    flood(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n" * 10_000)


def trailers(address: Address) -> None:
    begin = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    flood(address, begin, b"a: b\r\n" * 10_000)


def held(address: Address, count: int, begin: bytes, drip: bytes) -> None:
    """``count`` connections that send a little now and then; new ones take the place of those that are closed."""
    end = time.monotonic() + SECONDS
    peers: list[socket.socket] = []
    while time.monotonic() < end:
        while len(peers) < count:
            with suppress(OSError):
                peers.append(connect(address, begin))
        for peer in list(peers):
            try:
                peer.send(drip)
            except OSError:
                peers.remove(peer)
        time.sleep(0.5)


def nothing(address: Address) -> None:
    time.sleep(SECONDS)


def idle(address: Address) -> None:
    held(address, 500, b"", b"")


def partial(address: Address) -> None:
    held(address, 500, b"POST /v1/comp", b"")


def slowloris(address: Address) -> None:
    held(address, 500, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"x-a: b\r\n")


def slow_bodies(address: Address) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    held(address, 500, head + b"Content-Length: 1000000\r\n\r\n" + b"x" * 400_000, b"x")


def never_reading(address: Address) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 400, "stream": True, "ignore_eos": True, "logprobs": 20}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    held(address, 20, head + b"Content-Length: %d\r\n\r\n" % len(body) + body, b"")


def pipelining(address: Address) -> None:
    flood(address, b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)


ATTACKS: dict[str, Callable[[Address], None]] = {
    each.__name__: each
    for each in (
        nothing,
        one_header,
        many_headers,
        trailers,
        idle,
        partial,
        slowloris,
        slow_bodies,
        never_reading,
        pipelining,
    )
}


def memory(pids: list[int]) -> float:
    found = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/status", encoding="ascii") as lines:
            found += next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return found


def watch(url: str, pids: list[int], busy: Callable[[], bool]) -> tuple[list[float], float]:
    """Milliseconds of each `/health`, and the most memory."""
    times: list[float] = []
    most = 0.0
    with httpx.Client(timeout=30) as client:
        while busy() or not times:
            begin = time.perf_counter()
            with suppress(httpx.TransportError):  # its connection gave way to another: the next try counts as well
                client.get(f"{url}/health")
            times.append((time.perf_counter() - begin) * 1000)
            most = max(most, memory(pids))
            time.sleep(0.02)
    return times, most


def start() -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-u", "-m", "labsupport.cli", "serve", "--port", "0", "--drain-seconds", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"at (http://\S+)/v1", line):
            return process, found[1]
    raise SystemExit("the server did not start")


def start_nginx(url: str) -> tuple[subprocess.Popen[bytes], str]:
    """In front of one server, which takes the place of both."""
    template = (Path(__file__).parents[1] / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    run, behind = Path(tempfile.mkdtemp()), str(urlsplit(url).port)
    (run / "nginx").mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    for name, value in (("RUN", str(run)), ("API_1_PORT", behind), ("API_2_PORT", behind), ("PORT", port)):
        template = template.replace(f"@{name}@", value)
    (run / "nginx.conf").write_text(template, encoding="utf-8")
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SystemExit("nginx is not installed")
    command = [program, "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        with suppress(OSError):
            connect(("127.0.0.1", int(port))).close()
            return process, f"http://127.0.0.1:{port}"
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--url", help="default: a server that is started for it")
    parser.add_argument("--pid", type=int, default=os.getpid(), help="the process whose memory is watched")
    parser.add_argument("--nginx", action="store_true", help="put nginx in front of the server")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    process, url = (None, options.url) if options.url else start()
    pids = [options.pid if process is None else process.pid]
    nginx = None
    if options.nginx:
        nginx, url = start_nginx(url)
        pids += [nginx.pid, *(child.pid for child in psutil.Process(nginx.pid).children())]
    parts = urlsplit(url)
    address = str(parts.hostname), int(parts.port or 80)
    httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
    print(f"{'attack':<16}{'/health: median':>16}{'p99':>9}{'most':>9}   memory before, most, after (MB)")
    for name in options.attacks or ATTACKS:
        before = memory(pids)
        attack = multiprocessing.Process(target=ATTACKS[name], args=(address,))
        attack.start()
        times, most = watch(url, pids, attack.is_alive)
        attack.join()
        time.sleep(3)
        times.sort()
        median, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(f"{name:<16}{median:>13.1f} ms{late:>6.1f} ms{times[-1]:>6.0f} ms   ", end="")
        print(f"{before:.0f}, {most:.0f}, {memory(pids):.0f}", flush=True)
    if process is not None:
        peers = [multiprocessing.Process(target=never_reading, args=(address,))]
        peers[0].start()
        time.sleep(2)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        print(f"SIGTERM with clients that never read: status {status} after {time.monotonic() - begin:.1f} s")
        peers[0].kill()
    if nginx is not None:
        nginx.terminate()
        nginx.wait(30)


if __name__ == "__main__":
    main()
