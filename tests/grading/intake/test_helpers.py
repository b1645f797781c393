"""A right answer stays right when it leans on cells of the student's own: magics, stars, changes, missing modules."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from labsupport.grading.intake.changes import changed_names
from labsupport.grading.intake.helpers import choose_helpers, why_missing
from labsupport.grading.intake.magics import as_python
from labsupport.grading.job import Job, grade_one
from labsupport.grading.sandbox.stand_ins import StandIn, stand_in_for_missing
from labsupport.grading.sandbox.warm import SandboxError

ROOT = Path(__file__).parents[3]
NAME = "ex02_kv_cache_size"
PRISTINE = (ROOT / "exercises" / f"{NAME}.ipynb").read_bytes()
SIGNATURE = "(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2)"
PRODUCT = "batch_size * seq_len * num_layers * num_kv_heads * head_dim * bytes_per_element"


def chosen(own: list[str], answer: str) -> list[str]:
    return list(choose_helpers(list(enumerate(own, start=1)), [answer], ["import torch"]).chosen)


@pytest.mark.parametrize("helper", [
    "%matplotlib inline\nimport numpy as np", "!pip install numpy\nimport numpy as np", "import numpy as np\nnp.sum?",
    "?np\nimport numpy as np", "%%time\nimport numpy as np", "%%capture out\nimport numpy as np",
    "files = !ls\nimport numpy as np", "%load_ext autoreload\n%autoreload 2\nimport numpy as np",
    "from google.colab import drive\nimport numpy as np", "if True:\n    %time import numpy as np\nimport numpy as np",
])  # fmt: skip
def test_a_magic_does_not_hide_what_stands_beside_it(helper):
    assert chosen([helper, "play = 1"], "def f(x):\n    return np.sum(x)") == [helper]


@pytest.mark.parametrize("change", [
    "cfg['one'] = 1", "cfg.update(one=1)", "cfg['one'] += 1", "del cfg['one']", "cfg.x = 1", "fill(cfg)",
    "for k in range(3):\n    cfg[k] = k", "with open('x') as file:\n    cfg['x'] = file", "cfg['a']['b'].append(3)",
])  # fmt: skip
def test_cells_that_change_what_an_answer_uses_run_too(change):
    cells = ["cfg = {}", change, "print(cfg)", "other['x'] = 1"]
    got = chosen(cells, "def f(x):\n    return cfg['one']")
    assert got[:2] == cells[:2] and "print(cfg)" not in got and "other['x'] = 1" not in got


def test_cells_that_change_what_an_answer_defines_run_after_it():
    cells = [
        "def step(self):\n    return []",
        "S.step = step",
        "s = S()\ns.add(1)",
        "S(3).add(1)",
        "print(S)",
        "other.x = 1",
    ]
    got = choose_helpers(list(enumerate(cells)), ["class S:\n    pass"], ["import torch"])
    assert (got.chosen, got.after) == (tuple(cells[:1]), ("S.step = step",))
    assert [source for _, source in got.left_out] == cells[2:]


@pytest.mark.parametrize(("cells", "picked"), [
    (["import torch\ntorch.set_default_dtype(torch.float64)", "torch.manual_seed(0)\nx = torch.randn(3)"], 1),
    (["torch.save(1, 'x')", "torch.set_grad_enabled(False)\nprint(f(1))", "other.set_seed(0)"], 0),
    (["%%writefile tools.py\ndef twice(x):\n    return 2 * x", "from tools import twice"], 2),
    (["%%writefile other.py\ndef twice(x):\n    return 2 * x"], 0),
    (["%time twice = make()"], 1), (["%pylab inline"], 1), (["%time make()"], 0),
    (["async def load():\n    return 2", "twice = await load()"], 2), (["async with a as twice:\n    pass"], 1),
])  # fmt: skip
def test_settings_written_modules_timed_and_awaited_lines(cells, picked):
    assert chosen(cells, "def f(x):\n    return torch.sum(twice(x))") == cells[:picked]


def test_a_star_is_looked_into_only_if_a_name_is_missing():
    assert chosen(["from math import *"], "def f(x):\n    return sqrt(x)") == ["from math import *"]
    assert chosen(["from math import *"], "def f(x):\n    return x") == []
    assert chosen(["from math import *", "sqrt = 3"], "def f(x):\n    return sqrt") == ["sqrt = 3"]


def test_an_answer_with_a_magic_in_it_still_finds_its_helpers():
    assert chosen(["import numpy as np"], "%matplotlib inline\ndef f(x):\n    return np.sum(x)") == [
        "import numpy as np"
    ]


def test_changes_are_seen_only_at_the_top_level():
    assert changed_names("def f():\n    cfg['x'] = 1") == set() and changed_names("x = 1") == set()
    assert changed_names("a.b[c].d = 1\nif x:\n    e.f()\nelse:\n    del g[0]") == {"a", "e", "g"}
    assert changed_names("print(cfg)") == set() and changed_names("def") == set()


def test_text_without_a_magic_is_not_touched():
    for source in ("x = 5 % 3", "a = 'what?'\nb = 1", "x %= 2", "# 50%\ny = 1", "%%bash\nls", "def f(:\n  !"):
        assert "get_ipython" not in as_python(source) or source.startswith(("%%bash", "def f("))


@pytest.mark.parametrize(("left_out", "phrase"), [
    ([(4, "def scale(x):\n    return (x")], "your cell 4, in which scale stands, was left out: it is not valid Python"),
    ([(4, "other = 1")], "no cell of your notebook defines scale"),
])  # fmt: skip
def test_a_missing_name_says_which_cell_was_left_out_and_why(left_out, phrase):
    assert phrase in why_missing("your code raised NameError: name 'scale' is not defined", left_out)
    assert why_missing("your code raised ValueError: x", left_out) == ""


def test_a_stand_in_can_be_imported_and_not_used(monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    stand_in_for_missing(
        "import no_such_thing.deep as d\nfrom no_such_other import plot\nfrom google.colab import drive"
    )
    from no_such_other import plot  # type: ignore[import-not-found]

    for use in (lambda: plot(1), lambda: plot.line, lambda: sys.modules["no_such_thing.deep"].x()):
        with pytest.raises(ModuleNotFoundError, match="not installed where this is graded"):
            use()
    assert sys.modules["google.colab"].drive.mount("/content") is None


@pytest.mark.parametrize("source", [
    "try:\n    import no_such_cupy as xp\nexcept ImportError:\n    import numpy as xp", "import torch.no_such_part",
    "from . import no_such_x", "def (", "import json",
])  # fmt: skip
def test_what_an_author_provides_for_or_got_wrong_is_left_alone(monkeypatch, source):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    stand_in_for_missing(source)
    assert not [name for name, module in sys.modules.items() if isinstance(module, StandIn)]


def graded(own: list[str], body: str, before: str = ""):
    notebook = json.loads(PRISTINE)
    for cell in notebook["cells"]:
        if cell.get("id") == "answer-bytes":
            cell["source"] = f"{before}def kv_cache_bytes{SIGNATURE}:\n    return {body}\n"
    for i, source in enumerate(own):
        made = {"cell_type": "code", "id": f"own{i}", "metadata": {}, "source": source, "outputs": []}
        notebook["cells"].insert(2 + i, {**made, "execution_count": None})
    try:
        return grade_one(Job("s", NAME, json.dumps(notebook).encode(), PRISTINE, 3))
    except SandboxError as error:
        pytest.skip(f"no sandbox works here: {error}")


FULL = {"check_bytes", "check_default", "check_exact"}


def passed(row) -> set[str]:
    return {check.name for check in row.checks if check.passed} & FULL


def test_what_works_in_ipython_works_when_it_is_graded():
    """One notebook with everything at once: each of these cells alone would have cost the points."""
    own = [
        "%matplotlib inline\n!pip install --quiet seaborn\nfrom google.colab import drive\n"
        "drive.mount('/content/drive')\nimport seaborn_of_colab as sns\nimport numpy as np\nnp.prod?",
        "cfg = {}", "cfg['factor'] = 1", "cfg['factor'] += 1", "%no_such_magic\nfrom math import *",
        "%%time\ndef half(x):\n    return x // 2", "%%writefile own_tools.py\ndef same(x):\n    return x",
        "from own_tools import same", "import asyncio\nasync def slow():\n    return 1", "%time one = 1",
        "two = one + await slow()",
        "import no_such_theme as theme\ntheme.set()\ntool = theme.Tool()\n@theme.fast\ndef unused(x):\n    return x\n"
        "class Unused(theme.Base):\n    pass\nopen('/content/drive/x')\ninput('name?')\nthree = 3",
        "def fill():\n    cfg['five'] = 5", "fill()", "other = cfg", "other['six'] = 6", "_ = cfg.update(seven=7)",
        "[cfg.setdefault(i, i) for i in range(9)]", "%%capture\n%%time\nten = 10",
        "from labsupport.checks import ex02\nex02.check_bytes(1)\neleven = 11\nex02.check_exact(1)",
        "try:\n    import no_such_a as a\nexcept ImportError:\n    !pip install a\n    import no_such_a as a\nnine = 9",
    ]  # fmt: skip
    changed = "[cfg['five'], cfg['six'], cfg['seven'], cfg[8]] == [5, 6, 7, 8]"
    right = f"{changed} and eleven - ten == ten - nine == 1 and three == 3"
    body = f"half(same(4)) * two // 2 * cfg['factor'] // 2 * int(sqrt(1)) * {PRODUCT} * ({right})"
    row = graded(own, body, "%pip install x\n")
    assert passed(row) == FULL, [check.message for check in row.checks]


def test_what_a_sandbox_lacks_fails_by_name_when_it_is_used():
    row = graded(["import no_such_plots as plots"], f"plots.value * {PRODUCT}")
    assert not passed(row) and "no_such_plots is not installed where this is graded" in row.checks[0].message


def test_what_a_statement_would_have_made_of_a_stand_in_fails_by_name_too():
    row = graded(["import no_such_plots as plots\ntool = plots.Tool()\nother = 1"], f"other * tool.value * {PRODUCT}")
    assert "no_such_plots is not installed where this is graded, so tool cannot be used" in row.checks[0].message


def test_a_cell_that_failed_before_it_defined_a_name_is_named():
    row = graded(["raise ValueError('no data')\ntwo = 2"], f"two * {PRODUCT}")
    assert "your cell 2, which defines two, ended with ValueError: no data" in row.checks[0].message


def test_a_name_error_names_the_cell_that_was_left_out():
    row = graded(["def two(:\n    return 2"], f"two() * {PRODUCT}")
    assert "your cell 2, in which two stands, was left out: it is not valid Python" in row.checks[0].message
    assert replace(row).status == "failed"
