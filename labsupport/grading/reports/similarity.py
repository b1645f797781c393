"""Answers that are nearly the same once names, comments and layout are removed: a hint to look, never a proof.

Each answer becomes the set of all runs of `GRAM` tokens of its program, with every name that the answer itself binds
replaced by one placeholder, and docstrings, comments and formatting dropped (Schleimer, Wilkerson and Aiken,
"Winnowing", SIGMOD 2003, takes a sample of such runs; a class is small enough to take all). Runs of the stub, or of a
good part of the class, are left out: short exercises have few right answers. The rest is compared by the share of runs
that two answers have in common (Jaccard index).
"""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GRAM = 5  # tokens in a run
COMMON = 0.25  # share of the class above which a run counts as everybody's
FEW = 8  # in smaller classes only a run that all wrote counts as everybody's
ENOUGH = 25  # distinctive runs that an answer needs to be compared
_MAX_TOKENS = 20_000
_PLACEHOLDER = "name"


@dataclass(frozen=True)
class Pair:
    exercise: str
    first: str
    second: str
    similarity: float  # 0 to 1
    runs: int  # distinctive runs in common


def similar_pairs(
    exercise: str, answers: Mapping[str, str], stub: str = "", threshold: float = 0.8, limit: int = 50
) -> list[Pair]:
    """The most similar pairs among ``answers`` (student -> source), the most similar first."""
    known = runs(stub)
    grams = {student: runs(source) - known for student, source in answers.items()}
    seen = Counter(itertools.chain.from_iterable(grams.values()))
    most = max(2.0, COMMON * len(grams)) if len(grams) > FEW else max(2, len(grams) - 1)
    grams = {s: kept for s, g in grams.items() if len(kept := {run for run in g if seen[run] <= most}) >= ENOUGH}
    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for student in sorted(grams):
        for run in grams[student]:
            holders[run].append(student)
    shared = Counter(pair for students in holders.values() for pair in itertools.combinations(students, 2))
    found = []
    for (first, second), both in shared.items():
        similarity = both / (len(grams[first]) + len(grams[second]) - both)
        if similarity >= threshold and both >= ENOUGH:
            found.append(Pair(exercise, first, second, similarity, both))
    return sorted(found, key=lambda pair: (-pair.similarity, -pair.runs, pair.first, pair.second))[:limit]


def runs(source: str) -> set[tuple[str, ...]]:
    """All runs of `GRAM` consecutive tokens of ``source``, after renaming."""
    tokens = normalized(source)[:_MAX_TOKENS]
    return {tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)}


def normalized(source: str) -> list[str]:
    """The tokens of ``source`` without what can be changed without understanding it."""
    try:
        tree = ast.parse(source)
        _drop_docstrings(tree)
        own = {name for node in ast.walk(tree) for name in _bound(node)}
        source = ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        own = None  # not Python, such as a magic: every name may be the author's own
    return list(_tokens(source, own))


def _tokens(source: str, own: set[str] | None) -> Iterable[str]:
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in skip or not token.string.strip():
                continue
            is_name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            yield _PLACEHOLDER if is_name and (own is None or token.string in own) else token.string
    except (tokenize.TokenError, SyntaxError):
        return  # what came before the error counts


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.alias):
        return [node.asname] if node.asname else []
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):  # self.waiting = ...
        return [node.attr]
    return []


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
