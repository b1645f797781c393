"""How large language models are made smaller and faster: one algorithm a file, each of them real.

Importing this package is light. A subpackage, and torch with it, is imported when it is first used.

Where each algorithm is (files in labsupport/, tests in tests/; README.md has the same table with links):

    Algorithm                                 File                              arXiv       Section  Test
    Llama: RMSNorm, rotary positions, SwiGLU  lm/model.py                       2302.13971  1        lm/test_model.py
    Perplexity                                lm/evaluate.py                                1.1      lm/test_evaluate.py
    Calibration, layer by layer               lm/calibrate.py                               1.4      quantization/test_model.py
    Sizes: parameters, training memory        quantization/size.py              1910.02054  1.1      quantization/test_size.py
    Affine quantization                       quantization/affine.py            1712.05877  1.2      quantization/test_affine.py
    Round-to-nearest, in groups               quantization/rtn.py                           1.2      quantization/test_rtn.py
    Packing codes into bytes                  numerics/packing.py                           1.2      numerics/test_packing.py
    A quantized weight in memory              quantization/qweight.py                       1.2      quantization/test_qweight.py
    Observers: ranges of activations          quantization/observers.py         2106.08295  1.3      quantization/test_observers.py
    W8A8, a scale a token                     quantization/layers/dynamic.py                1.3      quantization/layers/test_dynamic.py
    W8A8, static ranges                       quantization/layers/static.py                 1.3      quantization/layers/test_static.py
    SmoothQuant                               quantization/smoothquant.py       2211.10438  1.3      quantization/test_smoothquant.py
    Hessian and inverse Cholesky factor       numerics/hessian.py               2210.17323  1.4      numerics/test_hessian.py
    GPTQ                                      quantization/gptq.py              2210.17323  1.4      quantization/test_gptq.py
    AWQ                                       quantization/awq.py               2306.00978  1.5      quantization/test_awq.py
    LSQ: training with quantization           quantization/qat.py               1902.08153  1.6      quantization/test_qat.py
    FP8                                       quantization/fp8.py               2209.05433  1.7      quantization/test_fp8.py
    4-bit weights times float inputs          quantization/fast/int4.py                     1.8      quantization/fast/test_int4.py
    8-bit weights times float inputs          quantization/fast/int8_weight.py              1.8      quantization/fast/test_int8_weight.py
    Integer matrix products                   quantization/fast/int8.py                     1.8      quantization/fast/test_int8.py
    Magnitude pruning                         pruning/magnitude.py              1506.02626  2.1      pruning/test_magnitude.py
    N:M (2:4) sparsity                        pruning/semi_structured.py        2104.08378  2.1      pruning/test_semi_structured.py
    Wanda                                     pruning/wanda.py                  2306.11695  2.1      pruning/test_wanda.py
    SparseGPT                                 pruning/sparsegpt.py              2301.00774  2.1      pruning/test_sparsegpt.py
    Dependencies between channels             pruning/dependencies.py           2301.12900  2.1      pruning/test_dependencies.py
    Structured pruning: channels              pruning/structured.py                         2.1      pruning/test_structured.py
    Importance of channels                    pruning/importance.py             1608.08710  2.1      pruning/test_importance.py
    Structured pruning of a Llama             pruning/llama.py                              2.6      pruning/test_llama.py
    Importance of layers, neurons, heads      pruning/llama_importance.py       2403.03853  2.6      pruning/test_llama.py
    Iterative pruning, rewinding              pruning/iterative.py              1803.03635  2.2      pruning/test_iterative.py
    Distillation losses, divergences          distillation/losses.py            1503.02531  2.3      distillation/test_losses.py
    Distillation, resumable                   distillation/distiller.py                     2.4      distillation/test_distiller.py
    Sequence-level distillation: targets      distillation/targets.py           1606.07947  2.4      distillation/test_distiller.py
    Distil, prune, quantize                   distillation/pipeline.py          1910.01108  2.5      distillation/test_pipeline.py
    Cost of decoding: FLOPs, bytes            kvcache/cost.py                               3.1      kvcache/test_cost.py
    Bytes of a KV cache                       kvcache/sizes.py                              3.1      kvcache/test_sizes.py
    Contiguous KV cache                       kvcache/contiguous.py                         3.2      kvcache/test_contiguous.py
    Generation with a cache                   kvcache/generation.py                         3.2      kvcache/test_contiguous.py
    Paged KV cache, copy on write             kvcache/paged.py                  2309.06180  3.3      kvcache/test_paged.py
    Block tables: grow, fork, share           kvcache/tables.py                 2309.06180  3.3      kvcache/test_tables.py
    Block allocator, prefix caching           kvcache/allocator.py              2309.06180  3.3      kvcache/test_allocator.py
    Paged attention, online softmax           kvcache/attention.py              2309.06180  3.3      kvcache/test_attention.py
    Grouped-query attention                   kvcache/gqa.py                    2305.13245  3.4      kvcache/test_gqa.py
    From MHA to GQA                           kvcache/convert.py                2305.13245  3.4      kvcache/test_convert.py
    Quantized KV cache, rotated               kvcache/quantized.py              2404.00456  3.5      kvcache/test_quantized.py
    Engine                                    inference/engine.py                           4.2      inference/test_engine.py
    Continuous batching, chunked prefill      inference/scheduler.py            2403.02310  4.3      inference/test_scheduler.py
    Prompts and decodes in one batch          inference/packed.py                           4.3      inference/test_engine.py
    Sampling                                  inference/sampling.py             1904.09751  4.6      inference/test_sampling.py
    Text out of a stream of tokens            inference/detokenize.py                       4.2      inference/test_request.py
    Simulation of batching                    inference/simulate.py             2403.02310  4.3      inference/test_simulate.py
    Compiled forward pass                     inference/fast/fused.py                       4.7      inference/fast/test_fused.py
    OpenAI-compatible server                  serving/api.py                                4.8      serving/test_api.py
    Engine in a thread                        serving/engine_thread.py                      4.9      serving/test_engine_thread.py
    Latency percentiles of a window           serving/monitor.py                            4.10     serving/test_monitor.py
    Load test, open and closed loop           serving/load/tester.py                        4.12     serving/load/test_tester.py
    Queue that loses nothing                  serving/stack/queue.py                        4.13     serving/stack/test_queue.py
"""  # noqa: E501

import lazy_loader

__version__ = "0.1.0"

COURSE_URL = "https://github.com/labsupport/labsupport"  # the one place: a test holds all other mentions to it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
