from . import (
    checkpoints,
    checks,
    distillation,
    grading,
    inference,
    kvcache,
    lm,
    numerics,
    pruning,
    quantization,
    serving,
    widgets,
)

COURSE_URL: str
__version__: str

__all__ = [
    "COURSE_URL",
    "__version__",
    "checkpoints",
    "checks",
    "distillation",
    "grading",
    "inference",
    "kvcache",
    "lm",
    "numerics",
    "pruning",
    "quantization",
    "serving",
    "widgets",
]
