"""The sandbox's copy of the checks: no judge, no reference answer, and nothing that draws inputs is in any file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labsupport.checks import exercise, exercises
from labsupport.grading.sandbox.package import build_package, without_judges, write_checks

CHECKS = Path(__file__).parents[3] / "labsupport" / "checks"
RUN = """
    import sys
    from labsupport.checks import exercise, exercises
    assert sys.modules["labsupport"].__file__.startswith(sys.argv[1]), sys.modules["labsupport"].__file__
    for name in exercises():
        print(name, *(check.name for check in exercise(name).checks))
"""
# What each exercise judges by. `inputs` and `judge` use these, `run` must not: none of the words may be in the copy.
SECRETS = {
    "ex01_int8_symmetric": """
        true_scales close compare_codes scale_mistake _compare_scale _compare_scales normal read_codes
        read_restored broadcast_scale SCALE_TOLERANCE CODE_TOLERANCE LARGEST_FLOOR
    """,
    "ex02_kv_cache_size": """
        cache_bytes num_that_fit draw_sizes BYTES_MISTAKES BYTES_FACTORS FIT_MISTAKES _with_default judge_counts
        lost_digits spelled
    """,
    "ex03_mha_vs_gqa": """
        num_parameters bytes_per_token draw_heads PARAMETER_MISTAKES CACHE_MISTAKES CACHE_FACTORS judge_counts
        lost_digits spelled
    """,
    "ex04_gptq": """
        output_error round_to_nearest coarsest_gptq correlated exact_inputs read_weight _hessian
        _levels _large_and_small _coarser _far_off _moved FORMULA SLOPE_TOLERANCE ERROR_TOLERANCE
    """,
    "ex05_continuous_batching": """
        right_schedule read_steps unfinished_at make_case draw_ids _judge_order _judge_schedule _why_idle
        _never_mixes _expect _same
    """,
    "ex06_inference_api": """
        expected_answer draw_answers judge_serving judge_threads judge_text judge_reason judge_envelope text_of _scrape
        _judge_events _judge_asked _judge_usage _advice _requests _step_by_step _serve_more METRICS WORDS Visit Got
    """,
    "ex07_prune_and_distill": """
        right_loss known_mistakes _kl judge_losses near read_loss read_mask read_student _forward
        require_small _why_inaccurate _is_threshold draw_digits draw_logits normal WRONG_LABELS ACTIVATIONS
    """,
}


def trees(folder: Path, name: str) -> dict[str, ast.Module]:
    """The files of an exercise, whether it is a folder or a file."""
    paths = [*folder.glob(f"{name}.py"), *folder.glob(f"{name}/**/*.py")]
    return {str(path.relative_to(folder)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def judges(files: dict[str, ast.Module]) -> list[ast.FunctionDef]:
    nodes = [node for tree in files.values() for node in ast.walk(tree)]
    return [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in ("judge", "inputs")]


def words(files: dict[str, ast.Module]) -> set[str]:
    """Every name in the code, also those that are imported, and not what is said in strings."""
    found: set[str] = set()
    for node in (node for tree in files.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "checks"
    write_checks(CHECKS, folder)
    return folder


@pytest.mark.parametrize("name", exercises())
def test_no_judge_is_in_the_copy(copy: Path, name: str) -> None:
    whole, reduced = trees(CHECKS, name), trees(copy, name)
    assert len(judges(whole)) >= 2 * len(exercise(name).checks)
    assert len(judges(reduced)) >= 2 * len(exercise(name).checks)
    assert {ast.unparse(ast.Module(each.body, [])) for each in judges(reduced)} == {"raise NotImplementedError"}
    size = {
        which: sum(len(ast.unparse(tree)) for tree in each.values())
        for which, each in (("whole", whole), ("reduced", reduced))
    }
    assert size["reduced"] < 0.5 * size["whole"]


@pytest.mark.parametrize("name", exercises())
def test_nothing_that_is_judged_by_is_in_the_copy(copy: Path, name: str) -> None:
    secrets = set(SECRETS[name].split())
    assert secrets <= words(trees(CHECKS, name)), "a name in this list is out of date"
    assert not secrets & words(trees(copy, name))


@pytest.mark.parametrize("name", exercises())
def test_files_that_only_judge_are_not_in_the_copy(copy: Path, name: str) -> None:
    """The files of reference answers, of drawing and of reading are known by their names."""
    known = re.compile(r"(.*_)?(oracles|drawing|reading|digits)\.py")
    whole = {file for file in trees(CHECKS, name) if known.fullmatch(Path(file).name)}
    assert whole and not whole & set(trees(copy, name))
    assert (CHECKS / "recorder.py").exists() and not {"recorder.py", "visit.py"} & {
        path.name for path in copy.iterdir()
    }


def test_the_copy_can_be_imported_and_has_every_check(tmp_path: Path) -> None:
    build_package(tmp_path)
    script = "\n".join(line[4:] for line in RUN.splitlines())
    process = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{script}", str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.stderr == ""
    wanted = [" ".join([name, *(check.name for check in exercise(name).checks)]) for name in exercises()]
    assert process.stdout.splitlines() == wanted


FACE = "labsupport.checks.ex99_made_up"
MADE_UP = {
    FACE: f"""
from labsupport.checks.check import Exercise
from {FACE}.first import check_first
EXERCISE = Exercise(name="ex99_made_up", checks=(check_first,))
""",
    f"{FACE}.first": f"""
from __future__ import annotations
from labsupport.checks.plain import call, describe
from {FACE}.base import Judging, MiddleCheck, answer_of
from {FACE}.oracles import REFERENCE, expected
class CheckFirst(Judging, MiddleCheck):
    name = "check_first"
    def inputs(self, seed): return {{"a": expected(seed)}}
    def judge(self, inputs, values): assert REFERENCE == describe(values)
check_first = CheckFirst()
""",
    f"{FACE}.base": f"""
from labsupport.checks.check import Check
from labsupport.checks.plain import call
from {FACE}.oracles import REFERENCE, helper_of_run
class Judging:
    def judge(self, inputs, values): secret_comparison(values)
class BaseCheck(Check):
    def run(self, answer, inputs): return self._call(answer, helper_of_run(inputs))
    def _call(self, answer, inputs): return call(answer["f"], inputs)
    def _verdict(self, values): return REFERENCE
class MiddleCheck(BaseCheck):
    def _compared(self, values): return values == REFERENCE
def answer_of(values): return REFERENCE
def secret_comparison(values): assert values == REFERENCE
""",
    f"{FACE}.oracles": """
REFERENCE = 42
def expected(seed): return REFERENCE + seed
def helper_of_run(inputs): return list(inputs)
""",
    f"{FACE}.more_oracles": "ANSWER = 43",
}  # fmt: skip


def test_judges_are_cut_out_across_files() -> None:
    reduced = without_judges(FACE, MADE_UP)
    assert set(reduced) == set(MADE_UP) - {f"{FACE}.more_oracles"}
    text = "\n".join(reduced.values())
    for secret in ("REFERENCE", "expected", "secret_comparison", "answer_of", "_verdict", "_compared", "describe"):
        assert secret not in text
    assert text.count("raise NotImplementedError") == 16  # of the check, its two bases and the class beside them
    for needed in ("def helper_of_run", "def run", "def _call", "check_first = CheckFirst()", "EXERCISE = "):
        assert needed in text


def test_a_module_imported_whole_is_refused() -> None:
    base = MADE_UP[f"{FACE}.base"].replace(
        f"from {FACE}.oracles import REFERENCE, helper_of_run", f"from {FACE} import oracles"
    )
    base = base.replace("helper_of_run(inputs)", "oracles.helper_of_run(inputs)")
    with pytest.raises(ValueError, match=r"base must import names of .*oracles; it imports all of it"):
        without_judges(FACE, MADE_UP | {f"{FACE}.base": base})
