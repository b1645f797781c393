"""A checkpoint's own chat template, rendered as transformers renders it: Jinja2 in its sandbox.

A template comes with a model from the internet, so it runs without access to Python's inside, and what runs away is
stopped: loops by the processor time they take, strings by their length. What people wrote must not become control
tokens: see `_as_text`. (transformers encodes the rendered text as it is, unless told to ``sanitize_control_tokens``.)
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer
from tokenizers import Tokenizer

from labsupport.checkpoints.companions import chat_template as stored_template
from labsupport.lm import LanguageModel
from labsupport.serving.errors import ApiError
from labsupport.serving.protocol import Message

SECONDS, LONGEST = 2.0, 10_000_000  # of the processor; characters of a string
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_role|>",
    "<end_of_turn>",
    "<|end_of_text|>",
)
_THOUGHTS = ("<think>", "</think>")  # templates look for them in what an assistant said
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}\u2060"  # of a token that somebody wrote; no text that is kept has it


def template_of(lm: LanguageModel, source: str | None = None, where: str = "the checkpoint") -> JinjaTemplate | None:
    """The template that lies with the model, or ``source``; None: there is none.

    Raises:
        ValueError: it is no Jinja template.
    """
    source = stored_template(lm) if source is None else source
    return None if source is None else JinjaTemplate(source, lm.tokenizer, special_tokens(lm.folder), where)


def special_tokens(folder: Path | None) -> dict[str, str]:
    """Those that a template can name (``bos_token``, ``eos_token``, ...), by their names."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = None if folder is None else folder / name
        given = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
        for key in _NAMES:
            token = given.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            found |= {key: token} if token else {}
    return found


class JinjaTemplate:
    """Called with messages: the prompt's tokens, and the tokens that end the answer."""

    def __init__(self, source: str, tokenizer: Any, special: dict[str, str], where: str = "the checkpoint") -> None:
        """
        Raises:
            ValueError: ``source`` is no Jinja template.
        """
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise_exception, "strftime_now": lambda form: datetime.now().strftime(form),
        }  # fmt: skip
        try:
            tree = _Bounded().visit(environment.parse(source))
            tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template of {where} is not Jinja: line {error.lineno}: {error.message}"
            ) from None
        self._tokenizer, self._special = tokenizer, special
        ends = {special.get("eos_token", ""), *(end for end in _TURN_ENDS if end in source)}
        inner = getattr(tokenizer, "tokenizer", None)
        self._inner: Tokenizer | None = inner if isinstance(inner, Tokenizer) else None
        added = [] if self._inner is None else self._inner.get_added_tokens_decoder().values()
        self._names = {
            each.content for each in added if each.special or (each.content in source and each.content not in _THOUGHTS)
        }
        self._control = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or "(?!)")
        self._literal: Tokenizer | None = None
        found = [self._inner.token_to_id(end) for end in sorted(ends & self._names)] if self._inner else []
        self.ends = [token for token in found if token is not None]

    def __call__(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """
        Raises:
            ApiError: 400: the template refuses the messages, fails or runs away.
        """
        turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
        written = [turn["content"] for turn in turns]
        if not any(map(self._is_control, written)):
            return self._encode(self._inner, self.render(turns)), self.ends
        for turn in turns:  # broken apart here, put together again by the tokenizer of `_as_text`
            turn["content"] = self._control.sub(lambda m: m[0][0] + _MARK + m[0][1:], turn["content"])
        self._literal = self._literal or _as_text(self._inner, self._names)
        return self._encode(self._literal, self.render(turns)), self.ends

    def render(self, turns: Sequence[dict[str, Any]]) -> str:
        """The prompt as text."""
        started = time.thread_time()

        def tick() -> None:
            if time.thread_time() - started > SECONDS:
                raise SecurityError(f"it took more than {SECONDS:g} seconds")

        given: dict[str, Any] = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text = self._template.render(**self._special, **given, _tick=tick, _joined=_joined)
            return _not_too_long(text)
        except TemplateError as error:
            raise _refused(error.message or type(error).__name__) from None
        except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
            raise _refused(f"{type(error).__name__}: {error}") from None

    def _is_control(self, text: str) -> bool:
        if self._inner is None:
            return False
        normalizer = self._inner.normalizer
        return bool(self._control.search(text) or (normalizer and self._control.search(normalizer.normalize_str(text))))

    def _encode(self, tokenizer: Tokenizer | None, text: str) -> list[int]:
        if tokenizer is None:
            return self._tokenizer.encode(text)
        return tokenizer.encode(text, add_special_tokens=False).ids


def _as_text(tokenizer: Tokenizer | None, control: set[str]) -> Tokenizer:
    """A tokenizer that finds control tokens in the text before it removes the marks from it: what is broken apart by a
    mark is found no more, and is text like any other."""
    assert tokenizer is not None
    stored = json.loads(tokenizer.to_str())
    removal = {"type": "Replace", "pattern": {"String": _MARK}, "content": ""}
    before = stored.get("normalizer")
    stored["normalizer"] = removal if before is None else {"type": "Sequence", "normalizers": [removal, before]}
    for token in stored["added_tokens"]:
        token["normalized"] = token["normalized"] and token["content"] not in control  # else they are found afterwards
    return Tokenizer.from_str(json.dumps(stored))


def _refused(words: str) -> ApiError:
    return ApiError(400, f"messages: the model's chat template says: {words[:500]}", "messages", "invalid_value")


class _Bounded(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and a look at the length into ``a ~ b``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("_tick", [])).set_lineno(node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("_tick", [])).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("_joined", node.nodes).set_lineno(node.lineno)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "+", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(each) if isinstance(each, str | list | tuple) else each for each in (left, right)]
        if operator == "**" and isinstance(right, int) and right > 64:
            raise SecurityError(f"a power of {right}")
        if operator == "*" and sizes != [left, right] and sizes[0] * sizes[1] > LONGEST:
            raise SecurityError(f"more than {LONGEST:,} characters")
        return _not_too_long(super().call_binop(context, operator, left, right))


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; it prints what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _joined(*parts: Any) -> str:
    return _not_too_long("".join(map(str, parts)))


def _not_too_long(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > LONGEST:
        raise SecurityError(f"more than {LONGEST:,} characters")
    return value


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    """Without the escapes that Jinja's own filter makes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
