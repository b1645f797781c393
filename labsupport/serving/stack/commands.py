"""The commands `labsupport stack up | api | worker`. What they need is imported when they run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from labsupport.serving.options import (
    AllowedHosts,
    ApiKeyFile,
    CorsOrigin,
    DrainSeconds,
    Host,
    KeysEverywhere,
    MaxConnections,
    MaxModelLen,
    MaxNumSeqs,
    Model,
    NumBlocks,
    Port,
    Threads,
)

REDIS_URL = "LABSUPPORT_REDIS_URL"

MaxInFlight = Annotated[
    int, typer.Option(min=1, help="Unfinished requests of all API servers together; the next one is answered 429.")
]
LeaseSeconds = Annotated[
    float, typer.Option(min=0.5, help="How long the requests of a killed worker wait for another worker.")
]
RedisUrl = Annotated[str, typer.Option(envvar=REDIS_URL, help="The queue.")]

stack = typer.Typer(help="The serving stack: nginx, API servers, a queue in Redis, engine workers, Prometheus.")


def register(app: typer.Typer) -> None:
    """Add the commands to `labsupport`."""
    app.add_typer(stack, name="stack", no_args_is_help=True)


@stack.command()
def up(
    model: Model = "tiny",
    port: Annotated[
        int, typer.Option(min=0, max=65500, help="nginx's port; the others follow it. 0 picks free ones.")
    ] = 8000,
    data: Annotated[
        Path, typer.Option(help="Folder for the queue, the metrics, and the generated configuration.")
    ] = Path("~/.local/state/labsupport/stack"),
    deploy: Annotated[
        Path | None, typer.Option(help="Folder with the Procfile; default: the course's deploy/.")
    ] = None,
    max_num_seqs: MaxNumSeqs = 16,
    max_in_flight: MaxInFlight = 96,
    lease_seconds: LeaseSeconds = 10.0,
    drain_seconds: DrainSeconds = 30.0,
) -> None:
    """Start the whole stack on this machine; Ctrl-C or SIGTERM stops it."""
    import asyncio

    from labsupport.console import errors_as_one_line
    from labsupport.serving.stack.configuration import prepare
    from labsupport.serving.stack.processes import run_stack

    with errors_as_one_line():
        run = data.expanduser().absolute()
        folder = deploy or Path(__file__).parents[3] / "deploy"
        threads = max(1, (os.cpu_count() or 2) // 2)
        settings = {
            "MODEL": model, "MAX_NUM_SEQS": str(max_num_seqs), "MAX_IN_FLIGHT": str(max_in_flight),
            "LEASE_SECONDS": str(lease_seconds), "DRAIN_SECONDS": str(drain_seconds), "THREADS": str(threads),
        }  # fmt: skip
        variables = prepare(run, folder, port, settings)

        def ready(address: str) -> None:
            typer.echo(f"ready: {address}/v1 ; Prometheus: http://127.0.0.1:{variables['PROMETHEUS_PORT']}")

        try:
            asyncio.run(run_stack(run, variables, drain_seconds, ready, say=typer.echo))
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        typer.echo("stopped")


@stack.command()
def api(
    port: Port,
    model: Model = "tiny",
    host: Host = "127.0.0.1",
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0",
    max_in_flight: MaxInFlight = 96,
    max_model_len: MaxModelLen = None,
    api_key_file: ApiKeyFile = None,
    keys_everywhere: KeysEverywhere = False,
    allowed_hosts: AllowedHosts = None,
    cors_origin: CorsOrigin = None,
    max_connections: MaxConnections = 1000,
    drain_seconds: DrainSeconds = 30.0,
) -> None:
    """Run an API server: OpenAI's API in front of the queue. It has no engine."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.lm import load_lm
        from labsupport.serving.access import default_hosts
        from labsupport.serving.api import create_app
        from labsupport.serving.connection import Limits
        from labsupport.serving.jinja_template import template_of
        from labsupport.serving.keys import read_keys
        from labsupport.serving.logs import configure_logs
        from labsupport.serving.server import run
        from labsupport.serving.stack.backend import RedisBackend
        from labsupport.serving.stack.queue import RequestQueue

        keys = read_keys(api_key_file)
        lm = load_lm(model)
        template = template_of(lm)
        tokenizer, name, longest = lm.tokenizer, lm.name, lm.model.config.max_positions
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(f"--max-model-len must be at most {longest}, the model's positions; got {max_model_len}")
        del lm  # only the workers need its weights
        backend = RedisBackend(RequestQueue(redis_url), tokenizer, name, max_model_len or longest, max_in_flight)
        limits = Limits(connections=max_connections)
        configure_logs()
        app = create_app(
            backend,
            template=template,
            api_keys=keys,
            drain_seconds=drain_seconds,
            keys_everywhere=keys_everywhere,
            allowed_hosts=default_hosts(host) if allowed_hosts is None else allowed_hosts,
            cors_origins=cors_origin or (),
        )
        run(app, host, port, drain_seconds, lambda url: typer.echo(f"serving {name} at {url}/v1"), limits)


@stack.command()
def worker(
    name: Annotated[str, typer.Option(help="Must differ from all other workers' names.")],
    model: Model = "tiny",
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0",
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Where Prometheus finds this worker's metrics, on 127.0.0.1.")
    ] = None,
    max_num_seqs: MaxNumSeqs = 16,
    num_blocks: NumBlocks = None,
    max_model_len: MaxModelLen = None,
    threads: Threads = None,
    lease_seconds: LeaseSeconds = 10.0,
    drain_seconds: DrainSeconds = 30.0,
) -> None:
    """Run an engine worker, which takes requests from the queue."""
    import asyncio
    import signal

    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        import torch

        from labsupport.inference import LLMEngine
        from labsupport.lm import load_lm
        from labsupport.serving.engine_thread import EngineThread
        from labsupport.serving.logs import configure_logs
        from labsupport.serving.stack.queue import RequestQueue
        from labsupport.serving.stack.worker import Worker
        from labsupport.serving.stack.worker_metrics import serve_metrics

        if threads is not None:
            torch.set_num_threads(threads)
        memory = 0.25  # two workers share the machine
        engine = LLMEngine(
            load_lm(model), max_num_seqs, num_blocks=num_blocks, max_model_len=max_model_len, memory_fraction=memory
        )
        configure_logs()

        async def work() -> None:
            queue = RequestQueue(redis_url, patience=1.0)
            one = Worker(queue, EngineThread.of(engine), name, max_num_seqs, lease_seconds)
            if metrics_port is not None:
                serve_metrics(one, metrics_port)
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, one.stop)
            typer.echo(f"{name} works on {engine.lm.name}")
            await one.run(drain_seconds)

        asyncio.run(work())
