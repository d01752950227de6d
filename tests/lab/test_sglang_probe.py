"""The simulator keeps the contract that the real server is held to as well; and a breach of it is found."""

import subprocess
import sys

import pytest

from lab import sglang_probe  # noqa: F401 - fills the list
from lab.contract import ContractError
from lab.model import make_model
from lab.sglang import FIRST_RELEASE, LabSglang, server_command
from lab.sglang_contract import CHECKS, Contract
from lab.sglang_life import LIFE_CHECKS, Launcher


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    with LabSglang(tmp_path_factory.mktemp("chat"), green=0, admin_key="open sesame") as running:
        yield running


@pytest.fixture
def contract(chat, tmp_path):
    model = chat.root("blue-1") / "current" / "model"
    return Contract(chat.server_url("blue-1"), model, FIRST_RELEASE, tmp_path, chat.admin_key)


@pytest.fixture
def launcher(tmp_path):
    argv, environment = server_command(real=False)
    return Launcher(argv, environment, 20.0, tmp_path)


@pytest.mark.parametrize("name", CHECKS)
def test_the_simulator_keeps_the_contract(contract, name):
    CHECKS[name](contract)


@pytest.mark.parametrize("name", LIFE_CHECKS)
def test_the_simulator_lives_and_dies_by_the_contract(launcher, name):
    LIFE_CHECKS[name](launcher)


def test_a_server_with_another_model_breaks_the_contract(launcher, tmp_path):
    bad = make_model(tmp_path / "bad", seed=2, answers={})
    with launcher.started(bad) as running:
        running.wait_until_ready()
        server = running.contract(bad, "default", tmp_path)
        with pytest.raises(ContractError, match="Paris"):
            CHECKS["a_prompt_is_answered_greedily_by_what_the_weights_say"](server)
        with pytest.raises(ContractError, match="all metrics"):
            CHECKS["metrics_have_the_names_that_are_read"](server)


def test_a_server_that_does_not_die_of_bad_weights_breaks_the_contract(launcher):
    launcher.model("truncated")  # sound, in spite of its name
    with pytest.raises(ContractError):
        LIFE_CHECKS["a_swap_to_a_file_that_is_not_whole_kills_the_server"](launcher)


def test_the_command_line_says_which_checks_fail(chat):
    argv = [sys.executable, "-m", "lab.sglang_probe", chat.server_url("blue-1"), "--version", "another"]
    argv += ["--model", str(chat.root("blue-1") / "current" / "model")]
    argv += ["--only", "model_info_names_the_path_as_told_and_the_weight_version"]
    argv += ["--only", "ready_is_answered_at_once_and_without_a_body"]
    ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    good, bad, *words = ended.stdout.splitlines()
    assert good.startswith("fail")
    assert "expected: another" in bad
    assert words[0].startswith("ok")
