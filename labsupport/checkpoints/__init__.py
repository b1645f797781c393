"""A model as other programs read it, and as it was: one format a file, each with the layout that it writes.

    labsupport          exact.py               any result of the course, bit for bit
    huggingface         hugging_face.py        float weights: transformers, vLLM
    compressed-tensors  compressed_tensors.py  4 or 8 bits, W8A8: vLLM, transformers
    gptq                gptq.py                2, 4 or 8 bits, with or without act-order: vLLM, gptqmodel
    awq                 awq.py                 4 bits: vLLM, gptqmodel
    gguf                gguf.py                llama.cpp, Ollama, LM Studio, OpenVINO GenAI

`save` writes all of them; `labsupport.lm.load_lm` reads all but GGUF.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
