"""What tests of tasks share: a host reached by ssh, and an application of one instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import LabApplication
from lab.prefect_server import PrefectServer
from lab.sshd import LabSshd
from rules.entries import Opened
from rules.fleet import Instance
from rules.hosts import HostAddress
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.requirements import need
from tests.tasks.deploying import opening, settings_in
from tests.tasks.gateway import Gateway, api_through
from tests.tasks.updating import INSTANCE


@pytest.fixture(scope="session")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostAddress]:
    """This machine, reached by a real OpenSSH server on it."""
    need("ssh", "ssh-keygen", package="openssh-client")
    need("sshd", package="openssh-server")
    with LabSshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server.host


@pytest.fixture
def web(tmp_path: Path) -> Iterator[LabApplication]:
    """An application of one instance, in its first release."""
    with LabApplication(tmp_path / "web", blue=1, green=0) as running:
        yield running


@pytest.fixture
def local(web: LabApplication) -> Instance:
    """Its instance, as one of this machine."""
    return web.fleet.instance(INSTANCE)


@pytest.fixture(params=["here", "by ssh"])
def instance(request: pytest.FixtureRequest, local: Instance) -> Instance:
    """Its instance, once here and once by ssh; for tests where that matters, as a connection takes time."""
    if request.param == "here":
        return local
    return local.model_copy(update={"host": request.getfixturevalue("remote")})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def through(prefect_api: PrefectServer, settings: Settings) -> Iterator[tuple[PrefectApi, Gateway]]:
    with api_through(prefect_api.api_url, settings) as both:
        yield both


@pytest.fixture
def api(through: tuple[PrefectApi, Gateway]) -> PrefectApi:
    return through[0]


@pytest.fixture
def between(through: tuple[PrefectApi, Gateway]) -> Gateway:
    return through[1]


@pytest.fixture
def opened() -> Opened:
    return opening()
