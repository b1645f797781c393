from .gguf import write_gguf
from .save import FORMATS, save

__all__ = ["FORMATS", "save", "write_gguf"]
