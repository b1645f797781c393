"""API keys: read from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path


class ApiKeys:
    """Knows only the keys' digests. Without keys everybody has access."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def allow(self, authorization: str) -> bool:
        """Whether this ``Authorization`` header holds one of the keys.

        It takes the same time whatever was sent: digests have one length, and every key is compared.
        """
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return not self._digests or (any(matches) and scheme.lower() == "bearer")


def read_keys(path: Path | None) -> list[str]:
    """The keys in a file, one per line; blank lines and lines that begin with # are ignored. No file: no keys.

    Raises:
        ValueError: the file holds none. A server that then let everybody in would be a surprise.
    """
    if path is None:
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"--api-key-file must hold at least one key; {path.name} holds none")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
