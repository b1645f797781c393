"""Chapter 1's interactive pictures. Each function takes real weights or activations and returns a `Live`.

All are built alike: a cached `measure` computes what the algorithms of `labsupport.quantization` do at the settings
of the controls, `update` puts its numbers into the artists, `describe` puts them into words. Axes are fixed, so that a
change of the controls is seen as a change of the curves.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
