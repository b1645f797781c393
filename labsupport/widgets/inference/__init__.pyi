from .block_run import BlockRun, play_blocks
from .blocks import block_use
from .outliers import fp8_grid
from .roofline import roofline_limits
from .roofs import steps_under_roof
from .timeline import scheduler_timeline

__all__ = [
    "BlockRun",
    "block_use",
    "fp8_grid",
    "play_blocks",
    "roofline_limits",
    "scheduler_timeline",
    "steps_under_roof",
]
