"""What all commands of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """An error that the user can fix ends the command with one line and exit code 2, without a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("labsupport"):
            raise
        typer.echo(f"error: {error.name} is not installed; `labsupport doctor` says how to get it", err=True)
        raise typer.Exit(2) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
