import pytest

from lab import sglang_probe  # noqa: F401 - fills the list
from lab.processes import wait_until
from lab.sglang import FIRST_RELEASE
from lab.sglang_contract import CHECKS
from lab.sglang_life import LIFE_CHECKS

# a start takes 20 s on two idle cores and minutes on busy ones; the first test may install it all
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("name", CHECKS)
def test_the_real_server_keeps_the_contract(contract, name):
    CHECKS[name](contract)


@pytest.mark.parametrize("name", LIFE_CHECKS)
def test_the_real_server_lives_and_dies_by_the_contract(launcher, name):
    LIFE_CHECKS[name](launcher)


def test_users_of_the_real_servers_are_served_behind_the_balancer(chat, tmp_path):
    with chat.load(5, tmp_path) as load:
        wait_until(lambda: len(load.rows()) > 20, timeout_s=60, what="twenty prompts")
    summary = load.summary()
    assert summary.failed == 0
    assert summary.by_release == {FIRST_RELEASE: summary.requests}
    seen = chat.observed()["instances"]["green-1"]
    assert (seen["running"], seen["says"]) == (FIRST_RELEASE, " Paris.")
