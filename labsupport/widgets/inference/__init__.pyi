from .block_run import BlockRun, play_blocks
from .blocks import block_use
from .outliers import fp8_grid
from .roofline import roofline_limits
from .roofs import measured_roofs
from .timeline import scheduler_timeline

__all__ = [
    "BlockRun",
    "block_use",
    "fp8_grid",
    "measured_roofs",
    "play_blocks",
    "roofline_limits",
    "scheduler_timeline",
]
