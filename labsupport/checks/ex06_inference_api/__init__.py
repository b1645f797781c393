"""Exercise 6: an HTTP API in front of an engine.

The checks are clients: they speak HTTP to the student's app, which runs on a server without a network (`asgi`), before
an engine whose answers are known and whose steps wait until they are allowed (`stand_in_engine`). So the order of
events, not the clock, shows whether an app blocks, streams and batches. Any app that keeps the contract passes:
coroutines or functions, a thread that steps or a task, started at once or on demand.

`run` returns what the clients got, and what the engine was asked to do.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex06_inference_api.bad_input import check_bad_input
from labsupport.checks.ex06_inference_api.completion import check_completion
from labsupport.checks.ex06_inference_api.concurrent import check_concurrent
from labsupport.checks.ex06_inference_api.disconnect import check_disconnect
from labsupport.checks.ex06_inference_api.health import check_health
from labsupport.checks.ex06_inference_api.metrics import check_metrics
from labsupport.checks.ex06_inference_api.stream import check_stream

__all__ = [
    "EXERCISE",
    "check_bad_input",
    "check_completion",
    "check_concurrent",
    "check_disconnect",
    "check_health",
    "check_metrics",
    "check_stream",
]

EXERCISE = Exercise(
    name="ex06_inference_api",
    checks=(
        check_completion,
        check_stream,
        check_concurrent,
        check_bad_input,
        check_metrics,
        check_disconnect,
        check_health,
    ),
)
