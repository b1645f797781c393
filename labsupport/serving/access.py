"""Who may ask for what, decided from a request's headers alone: nothing of its body is read before.

A server on this machine with no key is still not for everybody. Any page that a browser here opens may send requests
to 127.0.0.1, and by pointing its own name at that address (DNS rebinding) even read the answers. Such a request carries
the page's name in its ``Host`` header, so the server answers only to names it knows.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from labsupport.serving.errors import error_body
from labsupport.serving.keys import ApiKeys

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def default_hosts(host: str) -> list[str]:
    """The names to answer to when listening on ``host``: those of this machine if it is one of them, else any."""
    return sorted({*LOOPBACK, host.lower()}) if _is_loopback(host) else []


class Access:
    """
    Args:
        keys: accepted API keys; none: everybody has access.
        keys_everywhere: every path needs a key; else only those under ``/v1/``.
        hosts: the names, without port, that a ``Host`` header may have; none: any.
    """

    def __init__(self, keys: Sequence[str], keys_everywhere: bool = False, hosts: Sequence[str] = ()) -> None:
        if isinstance(keys, str) or not all(isinstance(key, str) and key.strip() for key in keys):
            raise ValueError("api_keys must be a list of strings that are not empty")
        if isinstance(hosts, str) or not all(isinstance(host, str) and host.strip() for host in hosts):
            raise ValueError("allowed_hosts must be a list of strings that are not empty")
        if keys_everywhere and not keys:
            raise ValueError("keys_everywhere needs api_keys; there are none")
        self.keys, self.everywhere = ApiKeys(list(keys)), keys_everywhere
        self.hosts = frozenset() if "*" in hosts else frozenset(host.strip("[]").lower() for host in hosts)

    def refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """The answer to a request that may not come in; None: it may."""
        if self.hosts:
            names = headers.getlist("host")
            if len(names) != 1 or host_name(names[0]) not in self.hosts:
                message = "This server does not answer to that Host; it can be added with --allowed-hosts"
                return _refused(403, message, "host_not_allowed")
        given = set(headers.getlist("authorization"))
        if len(given) > 1:
            return _refused(400, "There are two different Authorization headers: send one", "ambiguous_authorization")
        needed = self.everywhere or scope["path"].startswith("/v1/")
        if needed and not self.keys.allow(next(iter(given), "")):
            message = "The API key is missing or wrong: send `Authorization: Bearer KEY`."
            return _refused(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        return None


def host_name(host: str) -> str:
    """Of a ``Host`` header: without its port, in small letters; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, None, code), status, headers)
