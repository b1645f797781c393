"""The commands `labsupport serve` and `loadtest`. What they need is imported when they run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labsupport.serving.keys import read_keys
from labsupport.serving.options import (
    AllowedHosts,
    ApiKeyFile,
    ChatTemplateFile,
    CorsOrigin,
    Device,
    DrainSeconds,
    Host,
    KeysEverywhere,
    MaxConnections,
    MaxModelLen,
    MaxNumSeqs,
    Model,
    NumBlocks,
    Port,
    Precision,
    Quantization,
    Threads,
    VLLMOption,
    load,
    vllm_options,
)
from labsupport.serving.stack import commands as stack_commands


class Engine(StrEnum):
    labsupport = "labsupport"
    vllm = "vllm"


def register(app: typer.Typer) -> None:
    """Add the commands to `labsupport`."""
    app.command()(serve)
    app.command()(loadtest)
    stack_commands.register(app)


def serve(
    model: Model = "tiny",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Compress the weights first, calibrated on the course's text.")
    ] = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Bits per weight, for rtn, gptq and awq.")] = 4,
    group_size: Annotated[int, typer.Option(min=1, help="Weights that share a scale.")] = 64,
    max_num_seqs: MaxNumSeqs = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; the next one is answered 429.")] = 64,
    max_model_len: MaxModelLen = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per block of the KV cache.")] = 16,
    num_blocks: NumBlocks = None,
    chat_template: ChatTemplateFile = None,
    api_key_file: ApiKeyFile = None,
    keys_everywhere: KeysEverywhere = False,
    allowed_hosts: AllowedHosts = None,
    cors_origin: CorsOrigin = None,
    max_connections: MaxConnections = 1000,
    drain_seconds: DrainSeconds = 30.0,
    threads: Threads = None,
    device: Device = "auto",
    dtype: Precision = None,
    engine: Annotated[Engine, typer.Option(help="vllm: needs vLLM, and serves any model that it supports.")] = (
        Engine.labsupport
    ),
    vllm_option: VLLMOption = None,
) -> None:
    """Serve a model with OpenAI's API. SIGTERM or Ctrl-C stops it once running requests are finished."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.serving.access import default_hosts
        from labsupport.serving.api import create_app
        from labsupport.serving.backend import Backend
        from labsupport.serving.connection import Limits
        from labsupport.serving.engine_thread import EngineThread
        from labsupport.serving.logs import configure_logs
        from labsupport.serving.server import run

        keys = read_keys(api_key_file)
        backend: Backend
        template = None  # the model's own
        if engine is Engine.vllm:
            from labsupport.serving.vllm_backend import VLLMBackend

            if quantization is not None:
                raise ValueError("--quantization is for the course's engine: name a model that is already compressed")
            own = (
                ("--num-blocks", num_blocks), ("--threads", threads), ("--chat-template", chat_template),
                ("--device", None if device == "auto" else device), ("--dtype", dtype),
            )  # fmt: skip
            for name, given in own:
                if given is not None:
                    raise ValueError(f"{name} is for the course's engine: with vLLM, use its own --vllm-option")
            options = {"block_size": block_size} if block_size != 16 else {}
            options |= vllm_options(vllm_option)
            backend = VLLMBackend.of_model(model, max_num_seqs, max_waiting, max_model_len, **options)
        else:
            if vllm_option:
                raise ValueError("--vllm-option needs --engine vllm")
            import torch

            from labsupport.inference import LLMEngine
            from labsupport.lm import ModelNotAvailable
            from labsupport.serving.jinja_template import template_of

            if threads is not None:
                torch.set_num_threads(threads)
            try:
                lm = load(model, quantization, bits, group_size, device, dtype)
            except ModelNotAvailable as error:
                raise ValueError(str(error)) from error
            llm = LLMEngine(lm, max_num_seqs, block_size, num_blocks, max_model_len=max_model_len)
            backend = EngineThread.of(llm, max_waiting)
            if chat_template is not None:
                source = chat_template.read_text(encoding="utf-8")
                template = template_of(lm, source, str(chat_template))
            cache = f"{llm.cache.num_blocks} blocks of {block_size} tokens"
            typer.echo(f"KV cache of {cache}; {max_num_seqs} requests at a time, {max_waiting} waiting")
        app = create_app(
            backend,
            template=template,
            api_keys=keys,
            drain_seconds=drain_seconds,
            keys_everywhere=keys_everywhere,
            allowed_hosts=default_hosts(host) if allowed_hosts is None else allowed_hosts,
            cors_origins=cors_origin or (),
        )
        limits = Limits(connections=max_connections)
        configure_logs()
        run(app, host, port, drain_seconds, lambda url: typer.echo(f"serving {backend.model_name} at {url}/v1"), limits)
        typer.echo("stopped")


def loadtest(
    url: Annotated[str, typer.Argument(help="The server's address, such as http://127.0.0.1:8000")],
    rate: Annotated[
        float | None, typer.Option(min=0, help="Open loop: requests per second, at random (Poisson) times.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: number of clients; each sends again when it has its answer."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help='Lines of JSON: {"at": seconds, "prompt": "...", "max_tokens": 32}.')
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests, if there is no trace.")] = 100,
    prompt_chars: Annotated[str, typer.Option(help="Length of prompts: 64, or uniform:16:256, or lognormal:64:0.5")] = (
        "uniform:32:256"
    ),
    output_tokens: Annotated[str, typer.Option(help="Length of answers, in the same notation.")] = "uniform:8:64",
    ignore_eos: Annotated[bool, typer.Option(help="Answers of exactly that length, if the server supports it.")] = (
        False
    ),
    model: Annotated[str | None, typer.Option(help="Default: the first one that the server lists.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="The first key in it is sent.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="That send. Default: as many as the rate needs, at most one per core.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which a request counts as failed.")] = 120.0,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests at the same times.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for loadtest.json and latency.png.")] = None,
) -> None:
    """Put a server under load and measure it: latency counts from when a request was due, not from when it was sent."""
    import asyncio

    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.serving.load.processes import processes_for, run_in_processes
        from labsupport.serving.load.report import Report, write_report
        from labsupport.serving.load.tester import run_load
        from labsupport.serving.load.workload import plan_requests, read_trace

        if trace is not None:
            if rate is not None or concurrency is not None:
                raise ValueError("--trace has its own times: leave out --rate and --concurrency")
            plan = read_trace(trace)
        else:
            if rate is None and concurrency is None:
                raise ValueError("give --rate (open loop), --concurrency (closed loop), both, or --trace")
            plan = plan_requests(requests, rate, prompt_chars, output_tokens, seed)
        keys = read_keys(api_key_file)
        options: dict[str, Any] = {
            "model": model,
            "api_key": keys[0] if keys else None,
            "timeout": timeout,
            "ignore_eos": ignore_eos,
        }
        count = processes or min(processes_for(plan), concurrency or len(plan))
        if count > 1:
            typer.echo(f"{count} processes send")
            results = run_in_processes(url, plan, count, concurrency, **options)
        else:
            results = asyncio.run(run_load(url, plan, concurrency, **options, progress=True))
        report = Report.of(results)
        typer.echo(str(report))
        if out is not None:
            for path in write_report(report, results, out):
                typer.echo(f"written: {path}")
        if not report.succeeded:
            raise typer.Exit(1)
