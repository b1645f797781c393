"""Links in notebooks and Markdown files lead to files and headings that exist; a badge opens its own notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

import labsupport

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*.ipynb"))
PAGES = sorted(ROOT.glob("*.md")) + sorted(path for name in ("docs", "deploy") for path in (ROOT / name).rglob("*.md"))
DOCUMENTS = CHAPTERS + SOLUTIONS + EXERCISES + PAGES

BLOB = f"{labsupport.COURSE_URL}/blob/main/"
COLAB = BLOB.replace("https://github.com/", "https://colab.research.google.com/github/")
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(r"\]\(\s*<?([^()\s<>]+(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.M)
HTML_LINK = re.compile(r"<(?:a|img)\b[^>]*\b(?:href|src)=[\"']([^\"']+)")
HTML_ANCHOR = re.compile(r"<\w+\b[^>]*\b(?:id|name)=[\"']([^\"']+)")
HEADING = re.compile(r"^(?:> *)?#{1,6} +(.+?)(?: +#+)? *$", re.M)
IN_THIS_REPOSITORY = re.compile(r"(?:blob|tree|raw|edit)/main/([^\s)\"'`<>\]]+)")
MENTION = re.compile(r"(?<![\w./-])(?:labsupport|tests|benchmarks)/[\w/-]+\.py\b")
LINES = re.compile(r"L(\d+)(?:C\d+)?(?:-L(\d+)(?:C\d+)?)?")

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """What is rendered: the Markdown of a notebook or a page, without its code blocks."""
    if path.suffix != ".ipynb":
        text = path.read_text(encoding="utf-8")
    else:
        cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return FENCE.sub("", text)


def everything(path: Path) -> str:
    """The text of all cells, code included, or of the page."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells)


def links(path: Path) -> Iterator[str]:
    text = CODE_SPAN.sub("code", prose(path))
    for pattern in (LINK, REFERENCE, HTML_LINK):
        yield from pattern.findall(text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings: as JupyterLab makes them for notebooks, as GitHub does for Markdown."""
    text = prose(path)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in HEADING.findall(text)]
    if path.suffix == ".ipynb":
        made = [title.replace(" ", "-") for title in titles]
    else:
        made = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    numbered = {f"{each}-{made[:place].count(each)}" for place, each in enumerate(made) if each in made[:place]}
    return {*made, *numbered, *HTML_ANCHOR.findall(text)}


def fault(target: str, source: Path, root: Path) -> str | None:
    """What is wrong with a link from the file `source` to a place in this repository; None if it leads there."""
    file, _, anchor = target.partition("#")
    path = (source.parent / unquote(file)).resolve() if file else source
    if not path.is_relative_to(root.resolve()):
        return f"{target}: outside the repository"
    if not path.exists():
        return f"{target}: there is no such file"
    if not anchor:
        return None
    if lines := LINES.fullmatch(anchor):
        length = len(path.read_text(encoding="utf-8").splitlines())
        return f"{target}: the file has {length} lines" if int(lines[2] or lines[1]) > length else None
    if path.suffix not in (".ipynb", ".md"):
        return f"{target}: neither a notebook nor Markdown, so it has no headings"
    return None if unquote(anchor) in anchors(path) else f"{target}: there is no such heading"


def faults(path: Path, root: Path) -> list[str]:
    """Every link, and every source file named in passing, that leads to no file, line or heading of this repository."""
    relative = [fault(target, path, root) for target in links(path) if not re.match(r"[a-z][a-z+.-]*:|//", target)]
    text = everything(path)
    absolute = [
        fault(target.rstrip(".,;:"), root / "README.md", root)  # a file at the top: the address counts from there
        for base in (labsupport.COURSE_URL, COLAB.partition("/blob/")[0])
        for address in re.findall(re.escape(base) + r"/(\S+)", text)
        for target in IN_THIS_REPOSITORY.findall(address)
    ]
    names = [name for name in MENTION.findall(text) if "NN" not in name]  # exNN stands for any exercise
    mentioned = [fault(name, root / "README.md", root) for name in names]
    return [each for each in relative + absolute + mentioned if each]


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    assert faults(path, ROOT) == []


@pytest.mark.parametrize("path", CHAPTERS + EXERCISES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_badge_at_the_top_opens_this_notebook_in_colab(path: Path) -> None:
    first = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.splitlines()[0] == BADGE.format(COLAB + path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_carries_the_badge_of_its_exercise(path: Path) -> None:
    first = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells[0]
    assert first.source.splitlines()[0] == BADGE.format(f"{COLAB}exercises/{path.name}")


def test_the_readme_has_every_badge() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).as_posix() for path in CHAPTERS + EXERCISES]
    assert [name for name in names if BADGE.format(COLAB + name) not in text] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_table_of_contents_names_every_section_and_in_order(path: Path) -> None:
    """Sections are the headings that begin with a number."""
    sections = [title.replace(" ", "-") for title in HEADING.findall(prose(path)) if re.match(r"\d+\.\d+ ", title)]
    table = [target.removeprefix("#") for target in re.findall(r"^\| \[\d+\.\d+\]\((\S+)\)", prose(path), re.M)]
    assert sections
    assert table == sections


def test_the_learning_goals_name_sections_as_the_chapters_do() -> None:
    sections = [title for path in CHAPTERS for title in HEADING.findall(prose(path))]
    named = re.findall(r"^\| (\d+\.\d+ [^|]+?) \|", prose(ROOT / "docs" / "instructors.md"), re.M)
    assert named
    assert [name for name in named if not any(title.startswith(name) for title in sections)] == []


# ------------------------------------------------------------------------------------ the search for faults, searched


GOOD = f"""
# A title, with `code`

## A title

## A title

[here](#a-title-with-code) [again](#a-title-1) [file](code.py) [line](code.py#L2) [page](page.md#a-title)
[chapter](book.ipynb#1.1-Why?-Because) [with a title](code.py "hover") <img src="code.py"> [elsewhere](https://a.b/c.md)
`[not](a link)` {BLOB}code.py, {BLOB}code.py#L1-L2 [colab]({COLAB}book.ipynb) [reference][r]

[r]: code.py

```
[not](a-link-either)
```
"""

BAD = {
    "[a](gone.py)": "no such file",
    "![a](gone.png)": "no such file",
    "[`a`](gone.py)": "no such file",
    "[a][r]\n\n[r]: gone.py": "no such file",
    '<img width="9" src="gone.png">': "no such file",
    "[a](../../outside.py)": "outside the repository",
    "[a](#A-title)": "no such heading",
    "[a](page.md#a-title-2)": "no such heading",
    "[a](book.ipynb#1.1-why-because)": "no such heading",
    "[a](code.py#L3)": "2 lines",
    "[a](code.py#a-title)": "no headings",
    f"[a]({BLOB}gone.py#L1)": "no such file",
    f"see {BLOB}code.py#L1-L9.": "2 lines",
    f"[a]({COLAB}gone.ipynb)": "no such file",
    f"[a]({labsupport.COURSE_URL}/tree/main/gone)": "no such file",
    "the loop in `labsupport/gone.py` does": "no such file",
}


@pytest.fixture
def small_repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "code.py").write_text("one = 1\ntwo = 2\n", encoding="utf-8")
    (root / "page.md").write_text(GOOD, encoding="utf-8")
    cells = [
        nbformat.v4.new_markdown_cell("## 1.1 Why? Because"),
        nbformat.v4.new_code_cell(f"SOURCE = '{BLOB}code.py'"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "book.ipynb")
    return root


def test_good_links_have_no_fault(small_repository: Path) -> None:
    assert faults(small_repository / "page.md", small_repository) == []
    assert len(list(links(small_repository / "page.md"))) == 11
    assert faults(small_repository / "book.ipynb", small_repository) == []


@pytest.mark.parametrize("text", BAD)
def test_each_kind_of_broken_link_is_found(small_repository: Path, text: str) -> None:
    page = small_repository / "page.md"
    page.write_text(f"{GOOD}\n{text}\n", encoding="utf-8")
    (found,) = faults(page, small_repository)
    assert BAD[text] in found


def test_addresses_in_code_cells_are_followed_too(small_repository: Path) -> None:
    (small_repository / "code.py").unlink()
    assert [each for each in faults(small_repository / "book.ipynb", small_repository) if "code.py" in each]
