"""What attacks aim at, and how an attack is written.

An attack is a function, named after what it tries, that gets the `World` and returns the code of an answer cell. The
answer in that cell is wrong. If the attack reaches something that it must not reach, it defines the right functions,
and so scores. `World.broken` finds what it broke outside (files, processes, sockets).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
EXERCISE = "ex01_int8_symmetric"
RIGHT = """
import torch
def quantize_int8(x, axis=None):
    x = x.float()
    if axis is None:
        scale = x.abs().max() / 127
    else:
        others = [d for d in range(x.dim()) if d != axis % x.dim()]
        scale = x.abs().amax(dim=others, keepdim=True) / 127 if others else x.abs() / 127
    scale = scale.clamp(min=1e-12)
    return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale
def dequantize_int8(q, scale):
    return q.float() * scale
"""
WRONG = "def quantize_int8(x, axis=None):\n    return torch.ones(3), torch.ones(2)\n"
WRONG_DEQUANTIZE = "def dequantize_int8(q, scale):\n    return torch.ones(7)\n"


@dataclass
class World:
    """A course, a class and a grader, all in one folder."""

    folder: Path
    seed: int = 918273645546372819 % 2**40
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    datagrams: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    abstract: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __post_init__(self) -> None:
        self.submissions, self.out = self.folder / "submissions", self.folder / "grades"
        self.home, self.course = self.folder / "home", self.folder / "course"
        for path in (self.submissions, self.out, self.home, self.course / "exercises", self.course / "solutions"):
            path.mkdir(parents=True)
        for name in ("exercises", "solutions"):
            for path in (ROOT / name).glob("ex0[1236]*.ipynb"):
                (self.course / name / path.name).write_bytes(path.read_bytes())
        (self.home / ".bashrc").write_text("# mine\n")
        (self.home / ".bashrc").chmod(0o666)
        self.home.chmod(0o777)
        (self.out / "overrides.csv").write_text("student,exercise,score,reason\n")
        self.datagrams.bind(("127.0.0.1", 0))
        self.abstract.bind(f"\0{self.abstract_name}")
        self.abstract.listen()
        for each in (self.listener, self.datagrams, self.abstract):
            each.setblocking(False)

    @property
    def abstract_name(self) -> str:
        return f"labsupport-attack-{os.getpid()}-{self.folder.name}"

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    @property
    def udp_port(self) -> int:
        return self.datagrams.getsockname()[1]

    def submit(self, student: str, notebook: dict | bytes, exercise: str = EXERCISE) -> Path:
        path = self.submissions / student / f"{exercise}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode())
        return path

    def broken(self) -> list[str]:
        """Everything outside the sandboxes that has changed."""
        found = []
        for what, each in (("TCP", self.listener), ("abstract", self.abstract)):
            try:
                each.accept()
                found.append(f"a {what} connection was made")
            except BlockingIOError:
                pass
        try:
            self.datagrams.recv(100)
            found.append("a datagram was sent")
        except BlockingIOError:
            pass
        if sorted(os.listdir(self.home)) != [".bashrc"] or (self.home / ".bashrc").read_text() != "# mine\n":
            found.append(f"home holds {sorted(os.listdir(self.home))}")
        if (self.home / ".bashrc").stat().st_mode & 0o777 != 0o666:
            found.append("the mode of a file in home was changed")
        if (self.out / "overrides.csv").read_text() != "student,exercise,score,reason\n":
            found.append("the gradebook's overrides were changed")
        for path in self.course.rglob("*.ipynb"):
            if path.read_bytes() != (ROOT / path.relative_to(self.course)).read_bytes():
                found.append(f"{path.name} of the course was changed")
        return found

    def close(self) -> None:
        for each in (self.listener, self.datagrams, self.abstract):
            each.close()


@dataclass(frozen=True)
class Attack:
    name: str
    write: Callable[[World, str], None]  # puts the submission of this student in its place
    statuses: tuple[str, ...] = ("failed",)
    at_the_wall: bool = False  # what holds it off is a level of isolation, and not code that is the same at every level


ATTACKS: dict[str, Attack] = {}


def code(*statuses: str, at_the_wall: bool = True) -> Callable[[Callable[[World], str]], Callable[[World], str]]:
    """Register a function that returns the code which follows the wrong answer in its cell."""

    def register(function: Callable[[World], str]) -> Callable[[World], str]:
        def write(world: World, student: str) -> None:
            world.submit(student, notebook({"answer-quantize": f"{WRONG}\nRIGHT = {RIGHT!r}\n{function(world)}"}))

        add(function.__name__, write, statuses, at_the_wall)
        return function

    return register


def edit(*statuses: str) -> Callable[[Callable[[dict], object]], Callable[[dict], object]]:
    """Register a function that changes a notebook with wrong answers."""

    def register(function: Callable[[dict], object]) -> Callable[[dict], object]:
        def write(world: World, student: str) -> None:
            edited = notebook()
            world.submit(student, function(edited) or edited)  # type: ignore[arg-type]

        add(function.__name__, write, statuses)
        return function

    return register


def file(*statuses: str) -> Callable[[Callable[[World, Path], None]], Callable[[World, Path], None]]:
    """Register a function that writes the file itself."""

    def register(function: Callable[[World, Path], None]) -> Callable[[World, Path], None]:
        def write(world: World, student: str) -> None:
            path = world.submissions / student / f"{EXERCISE}.ipynb"
            path.parent.mkdir()
            function(world, path)

        add(function.__name__, write, statuses or ("invalid notebook",))
        return function

    return register


def add(name: str, write: Callable[[World, str], None], statuses: tuple[str, ...], at_the_wall: bool = False) -> None:
    if name in ATTACKS:
        raise ValueError(f"two attacks are called {name}")
    ATTACKS[name] = Attack(name, write, statuses or ("failed",), at_the_wall)


def notebook(answers: dict[str, str] | None = None, exercise: str = EXERCISE) -> dict:
    """The exercise with these answers, and wrong ones in the other answer cells."""
    read = json.loads((ROOT / "exercises" / f"{exercise}.ipynb").read_text(encoding="utf-8"))
    filled = {"answer-quantize": WRONG, "answer-dequantize": WRONG_DEQUANTIZE, **(answers or {})}
    for cell in read["cells"]:
        if cell["id"] in filled:
            cell["source"] = filled[cell["id"]]
    return read


def cell(read: dict, name: str) -> dict:
    (found,) = [each for each in read["cells"] if each["id"] == name]
    return found
