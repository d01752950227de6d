"""The HTTP client for whoever is asked now and then at an address of their own."""

from __future__ import annotations

import functools

import httpx


@functools.cache
def http() -> httpx.Client:
    """Return one client, since making it costs more than asking; it asks the server itself, by no proxy.

    It keeps no connection: each question makes its own, as new users do, and a server that was restarted
    would be found dead on the old one first.
    """
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
