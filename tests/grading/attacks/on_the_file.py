"""Attacks through the file: what is found where a notebook should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attacks.world import World, file, notebook


@file()
def link_to_the_solution(world: World, path: Path) -> None:
    path.symlink_to(world.course / "solutions" / path.name)


@file()
def link_to_a_secret(world: World, path: Path) -> None:
    path.symlink_to("/etc/passwd")


@file()
def link_to_itself(world: World, path: Path) -> None:
    path.symlink_to(path.name)


@file()
def pipe_that_nobody_writes_to(world: World, path: Path) -> None:
    os.mkfifo(path)


@file()
def folder_with_a_notebooks_name(world: World, path: Path) -> None:
    path.mkdir()


@file()
def huge(world: World, path: Path) -> None:
    path.touch()
    os.truncate(path, 4 << 30)


@file()
def empty(world: World, path: Path) -> None:
    path.touch()


@file()
def deeply_nested(world: World, path: Path) -> None:
    path.write_text('{"cells": ' + "[" * 500_000)


@file()
def deeply_nested_and_closed(world: World, path: Path) -> None:
    path.write_text('{"cells": [], "metadata": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}")


@file()
def millions_of_values(world: World, path: Path) -> None:
    path.write_text('{"cells": [' + "[]," * 4_000_000 + "[]]}")


@file()
def truncated(world: World, path: Path) -> None:
    path.write_text(json.dumps(notebook())[:2000])


@file()
def latin_1(world: World, path: Path) -> None:
    path.write_bytes(json.dumps(notebook() | {"author": "Zoë"}, ensure_ascii=False).encode("latin-1", "replace"))


@file()
def utf_16(world: World, path: Path) -> None:
    path.write_bytes(json.dumps(notebook()).encode("utf-16"))


@file()
def binary(world: World, path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


@file()
def python_instead_of_json(world: World, path: Path) -> None:
    path.write_text("__import__('os').system('touch /tmp/evil')")


@file()
def json_without_a_notebook(world: World, path: Path) -> None:
    path.write_text('[1, 2, {"cells": 3}]')


@file()
def cells_that_are_no_list(world: World, path: Path) -> None:
    path.write_text('{"cells": {"0": 1}, "nbformat": 4}')


@file()
def number_of_a_million_digits(world: World, path: Path) -> None:
    path.write_text('{"cells": [], "nbformat": ' + "9" * 1_000_000 + "}")


@file("not attempted")
def no_cells(world: World, path: Path) -> None:
    path.write_text('{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}')
