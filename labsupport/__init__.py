"""How large language models are made smaller and faster: one algorithm a file, each of them real.

Importing this package is light. A subpackage, and torch with it, is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

COURSE_URL = "https://github.com/labsupport/labsupport"  # the one place: a test holds all other mentions to it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
