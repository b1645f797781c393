"""Solutions are cut out of answer cells: nothing leaks, and the frame that the student fills stays whole."""

from __future__ import annotations

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labsupport.grading.stubs import cut_solution, make_exercise, place_answers, read_answers

ANSWER = '''
SECRET_BEFORE = "kept: it stands outside of the markers"


def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return helper(x)  # secret
    ### END SOLUTION


class Counter:
    def count(self):
        ### BEGIN SOLUTION
        return 1  # secret
        ### END SOLUTION


### BEGIN SOLUTION
def helper(x):
    return 2 * x  # secret
### END SOLUTION
'''.strip()


def test_the_solution_is_cut_and_the_frame_of_the_answer_kept():
    stub = cut_solution(ANSWER)
    assert "secret" not in stub.replace("SECRET_BEFORE", "") and "SOLUTION" not in stub and "helper" not in stub
    namespace: dict = {}
    exec(stub, namespace)
    assert namespace["double"].__doc__ == "Twice x." and namespace["SECRET_BEFORE"]
    for function in (lambda: namespace["double"](1), namespace["Counter"]().count):
        with pytest.raises(NotImplementedError):
            function()


@pytest.mark.parametrize(("source", "message"), [
    ("def f():\n    return 42", "nothing is cut"),
    ("def f():\n    '''raise NotImplementedError'''\n    return 42", "nothing is cut"),
    ("def f():\n    raise ValueError", "nothing is cut"),
    ("def f():\n    ### BEGIN SOLUTION\n    return 42", "has no '### END SOLUTION'"),
    ("def f():\n    return 42\n    ### END SOLUTION", "where the other marker belongs"),
    ("def f():\n    ### BEGIN SOLUTION\n    ### BEGIN SOLUTION\n    return 42", "where the other marker belongs"),
    ("def f():\n### BEGIN SOLUTION\n    return 42\n### END SOLUTION", "does not parse"),
    ("### BEGIN SOLUTION\nx = 42\n### END SOLUTION", "nothing is cut"),
])  # fmt: skip
def test_a_cell_that_would_leak_or_break_stops_the_release(source, message):
    with pytest.raises(ValueError, match=message):
        cut_solution(source, "ex.ipynb, cell a")


def test_answers_are_read_and_placed_by_id():
    cells = [
        new_markdown_cell("# Task", id="task"),
        new_code_cell(ANSWER, id="answer-double", metadata={"tags": ["answer"]}),
    ]
    pristine = make_exercise(new_notebook(cells=cells))
    filled = place_answers(pristine, {"answer-double": "def double(x): return 2 * x"})
    assert read_answers(filled) == {"answer-double": "def double(x): return 2 * x"}
    assert read_answers(pristine)["answer-double"] != read_answers(filled)["answer-double"]
    with pytest.raises(ValueError, match="task"):
        place_answers(pristine, {"task": "pass"})
