"""An nginx that deployments move traffic with."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from rules.hosts import HostAddress
from rules.traffic import NginxAddress


class Nginx(Block):
    """An upstream group of an nginx, whose configuration deployments write, test and reload."""

    _block_type_name: ClassVar[str] = "Sovereign nginx"
    _block_type_slug: ClassVar[str] = "sovereign-nginx"
    _description: ClassVar[str] = "An nginx that deployments move traffic with, by files that it includes."

    directory: str = Field(
        description="Absolute path of the directory that nginx includes in its http block, as "
        "`include DIRECTORY/*.conf;`. Deployments write one file for each route there; it must hold nothing "
        "else."
    )
    sides: dict[str, dict[str, str]] = Field(
        description="The two sides, their servers and where these answer nginx: "
        '{"blue": {"blue-1": "127.0.0.1:8001"}, "green": {"green-1": "127.0.0.1:8002"}}'
    )
    status_port: int = Field(
        description="A free port of 127.0.0.1 on its machine, where nginx says which split it applies. "
        "Several blocks of one nginx may share it."
    )
    upstream: str = Field(
        default="emily_active",
        description="Name of the upstream with the live side's servers, of 31 characters at most. A location "
        "with a canary says `proxy_pass http://$NAME;`, with the dollar sign.",
    )
    user_cookie: str = Field(
        default="uid",
        description="Cookie that keeps a user on one side while the share grows. Without it each request is "
        "drawn by itself.",
    )
    access_log: str | None = Field(
        default=None,
        description="Absolute path of a log in the format of the upstream's name: `access_log PATH NAME;`. "
        "Empty: nobody counts what the sides answer, so blue-green and canary are refused.",
    )
    server_parameters: str = Field(
        default="", description="Of each server of the upstreams, such as `max_fails=1 fail_timeout=2s`."
    )
    upstream_directives: list[str] = Field(
        default_factory=list, description="Of each upstream, without semicolon, such as `keepalive 32`."
    )
    test: list[str] = Field(
        default=["nginx", "-t"],
        description="Program and arguments that test the configuration. A broken one is never reloaded.",
    )
    reload: list[str] = Field(
        default=["nginx", "-s", "reload"],
        description="Program and arguments that reload it, such as `systemctl reload nginx`.",
    )
    host: str | None = Field(
        default=None,
        description="Name of the Sovereign Host block of the machine it runs on. Empty: the worker's own. "
        "A remote machine needs curl.",
    )
    timeout_s: float = Field(default=15.0, description="Seconds until a configuration must be in force.")
    settle_s: float = Field(
        default=5.0,
        description="Seconds that a change waits for requests of before to end where they are. Longer ones "
        "go on there.",
    )

    def data(self, host: HostAddress) -> NginxAddress:
        """Return these fields as a value, with `host` for the host block that they name.

        Raises:
            pydantic.ValidationError: a field is not what nginx can take.
        """
        fields = {name: getattr(self, name) for name in NginxAddress.model_fields if name != "balancer"}
        return NginxAddress.model_validate({**fields, "host": host})
