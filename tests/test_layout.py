"""Who may import whom, module by module: no circle, and no arrow against the order of the folders."""

from __future__ import annotations

from pathlib import Path

from imports import circle, import_graph, modules

# Each floor may import what stands on the floors before it, and its own folder; folders on one floor know nothing of
# each other. The files of the last floor may import everything.
FLOORS = (
    {"numerics"},
    {"lm"},
    {"quantization", "pruning"},
    {"distillation", "kvcache"},
    {"inference"},
    {"checkpoints"},
    {"serving"},
    {"widgets", "checks"},
    {"grading"},
    {"doctor"},
    {"cli"},
)
GROUND = {
    "labsupport",
    "console",
    "device",
    "files",
    "progress",
    "timing",
    "requirements",
    "chromium",
}  # small files without imports of their own, for everybody
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def part(module: str) -> str:
    """The folder (or file) directly below labsupport: "labsupport.lm.model" -> "lm"."""
    return module.split(".")[1] if "." in module else module


def against_the_order(graph: dict[str, set[str]]) -> list[str]:
    wrong = []
    for module, targets in graph.items():
        for target in targets:
            here, there = part(module), part(target)
            if there in GROUND or here == there:
                continue
            if here in GROUND or FLOOR_OF[there] >= FLOOR_OF[here]:
                wrong.append(f"{module} -> {target}")
    return sorted(wrong)


def without_faces(graph: dict[str, set[str]], root: Path) -> dict[str, set[str]]:
    """Without the `__init__`s that only hand names on: those are no code, and everything would pass through them."""
    faces = {name for name, path in modules(root).items() if path.stem == "__init__"}
    return {name: targets - faces for name, targets in graph.items() if name not in faces}


def test_every_folder_has_its_floor(root: Path) -> None:
    unknown = {part(name) for name in modules(root)} - GROUND - set(FLOOR_OF)
    assert not unknown, "say here on which floor the new folder stands"


def test_no_module_imports_itself_in_a_circle(root: Path) -> None:
    assert circle(without_faces(import_graph(root), root)) == []


def test_no_import_against_the_order(root: Path) -> None:
    assert against_the_order(import_graph(root)) == []


def test_package_faces_hold_no_code(root: Path) -> None:
    """`without_faces` leaves out every `__init__`: what defines a function there would escape the two tests above."""
    import ast

    for name, path in modules(root).items():
        if path.stem == "__init__":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert not [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)], name


def test_the_reader_sees_circles_and_arrows_of_every_form(tmp_path: Path) -> None:
    """On a made-up package: through a stub, under a function, relative; each is found and none invented."""
    files = {
        "__init__.py": "",
        "lm/__init__.py": "",
        "lm/__init__.pyi": "from .model import Llama",
        "lm/model.py": "def f():\n    from labsupport.lm import load\n",
        "lm/load.py": "from labsupport.lm import Llama",
        "numerics/__init__.py": "",
        "numerics/packing.py": "from ..lm.model import Llama",
        "quantization/__init__.py": "",
        "quantization/gptq.py": "import labsupport.pruning.wanda",
        "pruning/__init__.py": "",
        "pruning/wanda.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "labsupport" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path)
    assert circle(graph) == ["labsupport.lm.load", "labsupport.lm.model", "labsupport.lm.load"]
    assert against_the_order(graph) == [
        "labsupport.numerics.packing -> labsupport.lm.model",
        "labsupport.quantization.gptq -> labsupport.pruning.wanda",
    ]
