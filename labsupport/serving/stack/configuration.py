"""The stack's configuration: which programs, ports and files it needs; the templates of deploy/, filled in."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import socket
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from labsupport.files import write_atomically

TEMPLATES = ("nginx.conf", "redis.conf", "prometheus.yml", "prometheus-rules.yml")
PORTS = ("PORT", "API_1_PORT", "API_2_PORT", "WORKER_1_PORT", "WORKER_2_PORT", "REDIS_PORT", "PROMETHEUS_PORT")
PROGRAMS = {"REDIS_SERVER": "redis-server", "NGINX": "nginx", "PROMETHEUS": "prometheus"}
PACKAGES = {"redis-server": "redis-server", "nginx": "nginx-light", "prometheus": "prometheus"}

_PLACEHOLDER = re.compile("@([A-Z0-9_]+)@")


def prepare(run: Path, deploy: Path, port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Fill in the templates of ``deploy`` and write them to ``run``. Returns the variables for the Procfile.

    Args:
        port: the load balancer's; the other ports follow it. 0: any free ports.
        settings: more variables.

    Raises:
        ValueError: a program is not installed, a file is missing, or a port is taken.
    """
    run, variables = run.absolute(), dict(settings)
    if any(character.isspace() or character in "\"'\\;{}@" for character in str(run)):
        raise ValueError(f"the stack's folder must have no spaces or quotes in its path; got {run}")
    variables |= {"RUN": str(run), "LABSUPPORT": f"{shlex.quote(sys.executable)} -m labsupport.cli"}
    variables |= find_programs()
    variables |= dict(zip(PORTS, map(str, choose_ports(port, len(PORTS))), strict=True))
    password = secrets.token_urlsafe(24)
    variables |= {"REDIS_PASSWORD": password, "REDIS_URL": f"redis://:{password}@127.0.0.1:{variables['REDIS_PORT']}/0"}
    for folder in (run, run / "redis", run / "nginx", run / "prometheus"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (*TEMPLATES, "Procfile"):
        path = deploy / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: --deploy must name the folder deploy/ of the course")
        text = path.read_text(encoding="utf-8")
        if name != "Procfile":
            unknown = set(_PLACEHOLDER.findall(text)) - variables.keys()
            if unknown:
                raise ValueError(f"{path} must only use known @NAME@s; unknown: {', '.join(sorted(unknown))}")
            text = _PLACEHOLDER.sub(lambda found: variables[found[1]], text)
        write_atomically(run / name, text, private=True)  # one of them holds the password
    return variables


def find_programs() -> dict[str, str]:
    """Paths of the programs that the stack needs. Debian puts some where only root's PATH leads."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = {variable: shutil.which(program, path=path) for variable, program in PROGRAMS.items()}
    missing = [PROGRAMS[variable] for variable, place in found.items() if place is None]
    if missing:
        packages = " ".join(PACKAGES[program] for program in missing)
        raise ValueError(
            f"{', '.join(missing)} must be installed. On Debian and Ubuntu: sudo apt-get install {packages}; then, as "
            f"the stack starts its own: sudo systemctl disable --now {' '.join(missing)}"
        )
    return {variable: str(place) for variable, place in found.items()}


def choose_ports(first: int, count: int) -> list[int]:
    """``count`` free ports of 127.0.0.1: from ``first`` on, or any if it is 0.

    Raises:
        ValueError: one of them is taken.
    """
    ports, sockets = [], []
    try:
        for offset in range(count):
            listener = socket.socket()
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", first + offset if first else 0))
            except (OSError, OverflowError) as error:
                raise ValueError(f"port {first + offset} must be free; {error}. --port 0 picks free ones") from None
            ports.append(listener.getsockname()[1])
    finally:
        for listener in sockets:
            listener.close()
    return ports


def read_procfile(text: str, variables: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each program, by its name, with the variables filled in.

    Raises:
        ValueError: a line is not ``name: command``, a name occurs twice, or a variable is unknown.
    """
    programs: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, command = line.partition(":")
        name = name.strip()
        if not colon or not re.fullmatch(r"[\w-]+", name) or not command.strip() or name in programs:
            raise ValueError(f"Procfile, line {number}: must be `name: command`, each name once; got {line[:60]!r}")
        try:
            programs[name] = shlex.split(string.Template(command).substitute(variables))
        except (KeyError, ValueError) as error:
            raise ValueError(f"Procfile, line {number}: {error}") from None
    return programs
