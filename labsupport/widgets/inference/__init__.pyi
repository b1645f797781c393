from .block_run import BlockRun, play_blocks
from .blocks import block_use
from .roofline import roofline_limits
from .roofs import steps_under_roof
from .timeline import scheduler_timeline

__all__ = [
    "BlockRun",
    "block_use",
    "play_blocks",
    "roofline_limits",
    "scheduler_timeline",
    "steps_under_roof",
]
