"""Tests against the real SGLang: `make test-sglang`. `make test` leaves them out, they take many minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab import sglang_real
from lab.processes import LabError
from lab.sglang import FIRST_RELEASE, LabSglang, server_command
from lab.sglang_contract import Contract
from lab.sglang_life import Launcher

collect_ignore_glob = [] if os.environ.get("SGLANG_REAL") == "1" else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """Install the real SGLang; where that cannot be, skip, and under continuous integration fail."""
    is_ci = os.environ.get("CI") == "true"
    if (words := sglang_real.why_not()) and not is_ci:
        pytest.skip(words)
    try:
        sglang_real.install()
    except LabError as error:
        if is_ci:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def launcher(_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Start real servers, each for as long as it is needed."""
    argv, environment = server_command(real=True)
    return Launcher(argv, environment, 600.0, tmp_path_factory.mktemp("life"))


@pytest.fixture(scope="module")
def chat(_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    """A blue and a green real server behind HAProxy, in their first release."""
    with LabSglang(tmp_path_factory.mktemp("chat"), real=True) as running:
        yield running


@pytest.fixture(scope="module")
def contract(chat: LabSglang, tmp_path_factory: pytest.TempPathFactory) -> Contract:
    """The blue server, to be probed."""
    model = chat.root("blue-1") / "current" / "model"
    return Contract(chat.server_url("blue-1"), model, FIRST_RELEASE, tmp_path_factory.mktemp("probe"))
