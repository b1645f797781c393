"""What hostile clients do to the server: time of `/health` and memory, during each attack and after it.

    python benchmarks/attacks.py                      # against `labsupport serve`, which it starts
    python benchmarks/attacks.py --url http://127.0.0.1:8080 --pid 1234     # against another, such as nginx

Each attack runs in processes of its own, so that it does not slow down the clock that watches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import httpx

SECONDS = 8.0
MB = 2**20
Address = tuple[str, int]


def connect(address: Address, data: bytes = b"") -> socket.socket:
    peer = socket.create_connection(address, 10)
    peer.sendall(data)
    return peer


def flood(address: Address, begin: bytes, piece: bytes, total: int) -> None:
    """Send ``total`` bytes, in new connections whenever the server closes one."""
    end, sent = time.monotonic() + SECONDS, 0
    while sent < total and time.monotonic() < end:
        with suppress(OSError), connect(address, begin) as peer:
            while sent < total and time.monotonic() < end:
                peer.sendall(piece)
                sent += len(piece)


def one_header(address: Address) -> None:
    flood(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: ", b"x" * 2**16, 200 * MB)


def many_headers(address: Address) -> None:
    flood(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n" * 10_000, 237 * MB)


def trailers(address: Address) -> None:
    begin = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    flood(address, begin, b"a: b\r\n" * 10_000, 200 * MB)


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


def idle(address: Address) -> None:
    held(address, 500, b"", b"")


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
    flood(address, b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000, 200 * MB)


ATTACKS: dict[str, Callable[[Address], None]] = {
    each.__name__: each
    for each in (one_header, many_headers, trailers, idle, slowloris, slow_bodies, never_reading, pipelining)
}


def memory(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def watch(url: str, pid: int, busy: Callable[[], bool]) -> tuple[list[float], float]:
    """Milliseconds of each `/health`, and the most memory."""
    times, most = [], 0.0
    with httpx.Client(timeout=30) as client:
        while busy():
            begin = time.perf_counter()
            with suppress(httpx.TransportError):  # its connection gave way to another: the next try counts as well
                client.get(f"{url}/health")
            times.append((time.perf_counter() - begin) * 1000)
            most = max(most, memory(pid))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--url", help="default: a server that is started for it")
    parser.add_argument("--pid", type=int, default=os.getpid(), help="the process whose memory is watched")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    process, url = (None, options.url) if options.url else start()
    pid = options.pid if process is None else process.pid
    parts = urlsplit(url)
    address = str(parts.hostname), int(parts.port or 80)
    httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
    print(f"{'attack':<16}{'/health: median':>16}{'p99':>9}{'most':>9}   memory before, most, after (MB)")
    for name in options.attacks or ATTACKS:
        before = memory(pid)
        attack = multiprocessing.Process(target=ATTACKS[name], args=(address,))
        attack.start()
        times, most = watch(url, pid, attack.is_alive)
        attack.join()
        time.sleep(3)
        times.sort()
        median, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(f"{name:<16}{median:>13.1f} ms{late:>6.1f} ms{times[-1]:>6.0f} ms   ", end="")
        print(f"{before:.0f}, {most:.0f}, {memory(pid):.0f}", flush=True)
    if process is not None:
        peers = [multiprocessing.Process(target=never_reading, args=(address,))]
        peers[0].start()
        time.sleep(2)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        print(f"SIGTERM with clients that never read: status {status} after {time.monotonic() - begin:.1f} s")
        peers[0].kill()


if __name__ == "__main__":
    main()
