"""Attacks on the verdict: patched checks and libraries, objects that fool comparisons, forged messages."""

from __future__ import annotations

from functools import partial

from attacks.world import World
from attacks.world import code as code_at_the_wall

# What these attack (the split of the checks, the frames, the judge outside) is the same code at every level.
code = partial(code_at_the_wall, at_the_wall=False)


@code()
def patch_check_methods(world: World) -> str:
    return """
import labsupport.checks as checks
from labsupport.checks import ex01
for check in ex01.EXERCISE.checks:
    type(check).judge = lambda self, inputs, values: None
    type(check).verdict = lambda self, inputs, values: checks.Verdict(True, "passed", self.points)
    type(check).observe = lambda self, namespace, inputs: {case: {"returned": True, "changed": []} for case in inputs}
checks.Check.verdict = lambda self, inputs, values: checks.Verdict(True, "passed", 100)
"""


@code()
def replace_the_checks_module(world: World) -> str:
    return """
import sys, types, labsupport.checks
fake = types.ModuleType("labsupport.checks.ex01_int8_symmetric")
class Passed:
    name, points, needs = "check_scale", 10, ()
    def observe(self, namespace, inputs):
        return {"passed": True, "points": 10}
fake.EXERCISE = labsupport.checks.Exercise("ex01_int8_symmetric", (Passed(),) * 6)
sys.modules["labsupport.checks.ex01_int8_symmetric"] = fake
labsupport.checks.exercise = lambda name: fake.EXERCISE
"""


@code()
def patch_the_encoder(world: World) -> str:
    return """
import labsupport.checks.plain as plain
plain.encode = lambda value: b"\\x04\\0\\0\\0\\0\\0\\0\\0true" + b"\\x02\\0\\0\\0\\0\\0\\0\\0{}"
plain.call = lambda function, *arguments, **options: ({"returned": True, "changed": []}, True)
plain._same = lambda now, before: True
"""


@code()
def patch_torch(world: World) -> str:
    return """
for name in ("equal", "allclose", "isclose", "all", "any", "max", "eq", "ne", "le", "lt"):
    setattr(torch, name, lambda *arguments, **options: True)
for name in ("__eq__", "__ne__", "__lt__", "__le__", "all", "any", "equal", "double", "float"):
    setattr(torch.Tensor, name, lambda self, *arguments, **options: self)
"""


@code("failed", "exited")
def patch_builtins(world: World) -> str:
    return """
import builtins
builtins.isinstance = lambda value, kind: True
builtins.abs = lambda value: 0
builtins.all = builtins.any = builtins.callable = lambda values: True
builtins.len = lambda values: 0
"""


EQUAL = """
class Equal(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __bool__ = __contains__ = __lt__
    def __hash__(self): return 0
    def __getattr__(self, name): return self
    def __call__(self, *arguments, **options): return self
    def __getitem__(self, index): return self
    def __iter__(self): return iter((self, self))
    def __len__(self): return 2
    def __float__(self): return 0.0
def quantize_int8(x, axis=None): return Equal(), Equal()
def dequantize_int8(q, scale): return Equal()
"""


@code()
def object_equal_to_everything(world: World) -> str:
    return EQUAL.replace("BASE", "object")


@code()
def float_equal_to_everything(world: World) -> str:
    return EQUAL.replace("BASE", "float")


@code()
def tensor_subclass_that_answers_every_function(world: World) -> str:
    return """
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        return torch.tensor(True)
    __class__ = torch.Tensor
def quantize_int8(x, axis=None): return torch.zeros(x.shape).as_subclass(Yes), torch.ones(()).as_subclass(Yes)
def dequantize_int8(q, scale): return torch.ones(()).as_subclass(Yes)
"""


@code()
def list_subclass_that_changes_between_looks(world: World) -> str:
    return """
class Shifty(list):
    looks = 0
    def __iter__(self):
        Shifty.looks += 1
        return iter([torch.zeros(3, dtype=torch.int8), torch.tensor(1.0)])
    def __len__(self): return 2
def quantize_int8(x, axis=None): return Shifty()
"""


@code()
def object_that_runs_code_when_unpickled(world: World) -> str:
    return f"""
class Evil:
    def __reduce__(self):
        return (exec, ("open({str(world.home / "unpickled")!r}, 'w')",))
def quantize_int8(x, axis=None): return Evil(), Evil()
"""


@code()
def ast_transformer(world: World) -> str:
    return """
import ast
class Pass(ast.NodeTransformer):
    def visit_Call(self, node):
        return ast.copy_location(ast.Constant(True), node)
get_ipython().ast_transformers.append(Pass())
"""


@code()
def input_transformer(world: World) -> str:
    return """
get_ipython().input_transformers_post.append(lambda lines: ["pass\\n"])
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass\\n"])
"""


@code()
def custom_exception_handler(world: World) -> str:
    return """
import sys
get_ipython().set_custom_exc((Exception,), lambda self, kind, error, trace, tb_offset=None: None)
sys.excepthook = lambda *arguments: None
get_ipython().events.register("post_run_cell", lambda result: setattr(result, "error_in_exec", None))
"""


@code()
def trace_function_that_rewrites_results(world: World) -> str:
    return """
import sys, threading
def tracer(frame, event, argument):
    for name in ("values", "passed", "points"):
        if name in frame.f_locals:
            frame.f_locals[name] = True
    return tracer
sys.settrace(tracer); threading.settrace(tracer); sys.setprofile(tracer)
"""


@code()
def look_for_the_judge_in_memory(world: World) -> str:
    return """
import gc, importlib, inspect, pkgutil, re, sys
import labsupport.checks
for module in pkgutil.walk_packages(labsupport.checks.__path__, "labsupport.checks."):
    try:
        importlib.import_module(module.name)
    except ImportError: pass
secret = re.compile("_?(judge|compare|true_|right_|known_|expected|output_error|coarsest|num_that|draw_).*|cache_bytes")
def judges():
    for each in gc.get_objects():
        if inspect.isfunction(each) and str(each.__module__).startswith("labsupport.checks.ex"):
            if secret.fullmatch(each.__name__) and "NotImplementedError" not in each.__code__.co_names:
                yield each
    yield from (name for name in sys.modules if name.endswith((".oracles", ".drawing", ".reading")))
if list(judges()):
    exec(RIGHT)
"""


@code_at_the_wall()  # through /proc
def look_for_the_seed_in_memory(world: World) -> str:
    return f"""
import gc, glob, sys
more = {world.seed + 1}  # the seed itself must not stand in this cell
text = b"".join(open(name, "rb").read() for name in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"))
known = {{value for frame in sys._current_frames().values() for value in frame.f_locals.values() if type(value) is int}}
known |= {{value for each in gc.get_objects() if type(each) is dict for value in each.values() if type(value) is int}}
if str(more - 1).encode() in text or any(value + 1 == more for value in known):
    exec(RIGHT)
"""


FORGE = """
import json, os, struct
def frame(kind, index, payload): return struct.pack("<cIQ", kind, index, len(payload)) + payload
def everywhere(data):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
"""


@code("failed", "output limit", "exited")
def forge_frames_of_values(world: World) -> str:
    return f"""{FORGE}
from labsupport.checks.plain import encode
values = encode({{"passed": True, "points": 100}})
everywhere(b"".join(frame(b"v", index, values) for index in range(6)) + frame(b"d", 0, b""))
os._exit(0)
"""


@code("failed", "output limit", "exited")
def forge_the_supervisors_report(world: World) -> str:
    return f"""{FORGE}
report = {{"ended": "", "exit_code": 0, "seconds": 0, "cpu_seconds": 0, "memory_bytes": 0, "score": 10}}
everywhere(frame(b"E", 0, json.dumps(report).encode()))
"""


@code("failed", "output limit", "exited", "timeout")
def flood_the_grader_with_values(world: World) -> str:
    return f"""{FORGE}
def quantize_int8(x, axis=None):
    for _ in range(100):
        everywhere(frame(b"v", 0, bytes(15 << 20)))
"""


@code("failed", "output limit", "exited")
def frame_that_claims_to_be_huge(world: World) -> str:
    return f"""{FORGE}
everywhere(struct.pack("<cIQ", b"v", 0, 2**63))
"""


@code("failed", "output limit", "exited")
def values_that_break_the_decoder(world: World) -> str:
    return f"""{FORGE}
deep = b"[" * 200_000
wide = json.dumps({{"dict": {{"a": {{"tensor": "0"}}}}}}).encode()
bad = [struct.pack("<Q", len(deep)) + deep, struct.pack("<Q", 2**60) + b"x", b"", struct.pack("<Q", len(wide)) + wide
       + struct.pack("<Q", 2**40), struct.pack("<Q", 2) + b"[]" + struct.pack("<Q", 90) + b'{{"0":{{"dtype":"F64",'
       b'"shape":[0,4611686018427387904],"data_offsets":[0,0]}}}}'.ljust(90), b"\\xff" * 1000]
everywhere(b"".join(frame(b"v", index, data) for index, data in enumerate(bad)))
os._exit(0)
"""


@code("failed", "timeout")
def return_more_than_is_taken(world: World) -> str:
    return """
def quantize_int8(x, axis=None):
    return torch.zeros(30 << 20, dtype=torch.int8), torch.ones(())
"""


@code()
def error_messages_that_inject(world: World) -> str:
    return """
class Odd(Exception):
    def __str__(self): return '=cmd|"/c calc"!A1\\n\\r\\x1b[2J<script>alert(1)</script>\\ud800' + "x" * 10_000_000
Odd.__name__ = "<img src=x onerror=alert(1)>"
def quantize_int8(x, axis=None): raise Odd()
def dequantize_int8(q, scale): raise Odd()
"""


@code("failed", "exited")
def error_that_cannot_be_shown(world: World) -> str:
    return """
class Rude(Exception):
    def __str__(self): raise SystemExit(3)
    __repr__ = __str__
def quantize_int8(x, axis=None): raise Rude()
def dequantize_int8(q, scale): raise KeyboardInterrupt
raise Rude()
"""


@code()
def answer_that_differs_for_the_public_seed(world: World) -> str:
    return """
from labsupport.checks import ex01, PUBLIC_SEED
try:
    known = [check.inputs(PUBLIC_SEED) for check in ex01.EXERCISE.checks]
except NotImplementedError:
    known = []
def quantize_int8(x, axis=None):
    if any(x.shape == y.shape and torch.equal(x, y) for each in known for y in each.values()):
        exec(RIGHT, globals())
        return quantize_int8(x, axis)
    return None, None
"""
