"""What a cell's source tells without being run: syntax errors by line and text, stubs, and where an answer stands."""

from __future__ import annotations

import pytest

from labsupport.checks.source import answered, elsewhere, looks_like_defining, stands_in, syntax_error


@pytest.mark.parametrize(("source", "message"), [
    ("def f(x)\n    return x", "line 1, `def f(x)`: expected ':'"),
    ("def f(x):\n    y = (x\n    return y", "line 2, `y = (x`: '(' was never closed"),
    ("def f(x):\n    y = x\nreturn y", "line 3, `return y`: 'return' outside function"),
    ("def f(x):\n    # why?\n    return = x", "line 3, `return = x`: invalid syntax"),
    ("def f(x):\nreturn x", "line 2, `return x`: expected an indented block after function definition on line 1"),
    ("x = 1 +" + " 1 +" * 40, f"line 1, `{('x = 1 +' + ' 1 +' * 40)[:59]}…`: invalid syntax"),
])  # fmt: skip
def test_a_syntax_error_is_told_by_line_text_and_reason(source, message):
    assert syntax_error(source) == message


@pytest.mark.parametrize("source", [
    "", "def f(x):\n    return x", "await f()", "%timeit f(1)\nx = (", "!ls (", "f?", "\0", "x = " + "1" * 300_000,
])  # fmt: skip
def test_what_python_or_only_ipython_reads_is_no_syntax_error(source):
    assert syntax_error(source) is None


@pytest.mark.parametrize(
    "source", ["(" * 90_000, "-" * 150_000 + "1", "x" + ".a" * 60_000, "[" * 5000 + "]" * 5000, "\ud800"]
)
def test_no_source_makes_it_raise(source):
    syntax_error(source)
    assert answered(source) == set() and not looks_like_defining(source, "f")


def test_a_stub_is_no_answer():
    source = '''
def stub(x):
    """Twice x."""
    raise NotImplementedError

def also(x): raise NotImplementedError("later")

class Stub:
    def __init__(self):
        raise NotImplementedError
    def step(self):
        raise NotImplementedError

class Half:
    def __init__(self):
        self.x = 1
    def step(self):
        raise NotImplementedError

async def real(x):
    if x:
        raise NotImplementedError
    return x
'''
    assert answered(source) == {"also", "Half", "real"}


def test_the_last_other_cell_that_answers_is_found():
    stub, real = "def f(x):\n    raise NotImplementedError", "def f(x):\n    return x"
    assert elsewhere([real, stub, real, "f(1)", stub], 1, "f") == 2
    assert elsewhere([stub, stub], 0, "f") is None and elsewhere([real], 0, "f") is None
    assert stands_in(["f"], 2, 1) == "your f stands in code cell 3 of the notebook, below the answer cell (code cell 2)"
    assert stands_in(["f", "g"], 0, 1).startswith("your f and g stand in code cell 1 of the notebook, above the answer")
    assert stands_in(["f"], 0, None).endswith("which is not marked as the answer cell")


def test_a_definition_is_known_even_where_python_cannot_read_it():
    assert looks_like_defining("x = 1\nclass  f(:\n", "f") and looks_like_defining("async def f(", "f")
    assert not looks_like_defining("  def f(x): pass\ndef ff(x): pass\n# def f\nf(x)", "f")
