"""Progress bars, the same everywhere: on the terminal's standard error, as a widget in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")


def progress_bar(
    items: Iterable[Item] | None, what: str, unit: str, enabled: bool = True, total: int | None = None, done: int = 0
) -> Any:
    """``items`` with a bar that counts them, or (None) a bar to be moved by its ``update(n)``; a `tqdm`.

    Args:
        what: said in front of the bar.
        total: how many in all, where ``items`` cannot tell.
        done: of the total, how many an earlier run has done.
    """
    from tqdm.auto import tqdm  # looks for IPython when it is imported: not before there is something to show

    return tqdm(items, desc=what, unit=unit, total=total, initial=done, disable=not enabled)
