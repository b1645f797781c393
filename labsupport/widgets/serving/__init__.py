"""Chapter 4's interactive pictures, second half: a server under load, and what a monitor says of the last minute.

Whatever a slider asks for is simulated at once; points measured on a real server are drawn beside the simulation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
