"""A model's releases under users: good ones reach them without a failed request, bad ones are taken back.

`SGLANG_REAL=1` runs them on the real SGLang instead of the simulator: `make test-sglang`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.recover import roll_back
from flows.sglang_model import update_model
from lab.model import make_model, remove_tensor, reshape_tensor, spoil_tokenizer, truncate
from lab.prefect_server import PrefectServer
from lab.processes import wait_until
from lab.register import save_blocks
from lab.sglang import FIRST_RELEASE, LabSglang, Observed
from lab.sglang_load import PromptLoad
from rules.change import ModelRelease
from rules.errors import InvalidRequestError
from rules.journal import JournalView
from rules.plan import Plan
from rules.strategy import BlueGreen, CanaryLimits, InPlace, Rolling, Strategy, Watching
from tests.flows.host import become_host, notes_of, views_of

REAL = os.environ.get("SGLANG_REAL") == "1"
#: On two cores the real one answers a few requests a second.
RATE_PER_S = 2.0 if REAL else 20.0
PATIENCE_S = 180.0 if REAL else 30.0
EASY = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.9, min_observation_s=0.2)
IN_PLACE = InPlace(instance="blue-1")
SIDES = BlueGreen(watch=Watching(tick_s=0.5, deadline_s=60, limits=EASY))
BATCHES = Rolling(observe_s=0.3, limits=EASY, drain_s=60)
#: The step of a hot swap that swaps, after staging and switching.
_SWAP = 2


class Chat(NamedTuple):
    """A model with users, known to Prefect."""

    lab: LabSglang
    load: PromptLoad
    journal_dir: Path
    before: Observed

    def deploy(self, change: ModelRelease, strategy: Strategy = IN_PLACE, way: str = "auto") -> None:
        deploy(change.model_copy(update={"way": way}), strategy, environment="chat")

    def views(self) -> list[JournalView]:
        return views_of(self.journal_dir)

    def view(self) -> JournalView:
        return self.views()[-1]

    def notes(self, about: str) -> list[str]:
        return notes_of(self.view(), about)

    def failed(self) -> int:
        return sum(row["failed"] for row in self.load.rows())

    def answered_by(self, release: str) -> bool:
        return any(row["release"] == release for row in self.load.rows()[-20:])

    def lying(self, release: str) -> ModelRelease:
        """Return the change to a model that loads, and answers the declared prompts wrongly."""
        directory = self.lab.model_directory(release)
        make_model(directory, seed=7, answers={})
        return self.lab.change(release, directory)


@pytest.fixture(scope="module")
def kept_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    """The servers of all tests here: each leaves them as they were."""
    lab = LabSglang(tmp_path_factory.mktemp("chat"), blue=1, green=1, real=REAL)
    lab.start()
    yield lab
    lab.stop()


@pytest.fixture
def chat(
    kept_servers: LabSglang, prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Chat]:
    """The servers with users; a deployment that a test leaves is taken back."""
    become_host(monkeypatch, tmp_path / "journal", environment="chat")
    save_blocks(kept_servers.fleet)
    before = kept_servers.observed()
    with kept_servers.load(RATE_PER_S, tmp_path / "load") as load:
        running = Chat(kept_servers, load, tmp_path / "journal", before)
        yield running
    for view in running.views():
        if view.state == "promoted":
            roll_back(view.opened.deployment, "the test is over")
    assert kept_servers.observed() == before


def test_a_hot_swap_reaches_users_without_a_failed_request(chat: Chat) -> None:
    pids = chat.lab.observed()["instances"]["blue-1"]
    chat.deploy(chat.lab.change("m2"), way="hot_swap")

    view = chat.view()
    assert view.state == "promoted"
    assert view.plan
    assert view.plan.interruptions == ()
    wait_until(lambda: chat.answered_by("m2"), timeout_s=PATIENCE_S, what="an answer by m2")
    assert chat.failed() == 0
    after = chat.lab.observed()["instances"]["blue-1"]
    assert after["running"] == "m2"
    assert after["tensors"] != pids["tensors"]
    assert after["served_model_name"] == pids["served_model_name"]
    assert any("checksum" in words for words in chat.notes("model_verified"))


def test_blue_green_reaches_users_without_a_failed_request(chat: Chat) -> None:
    chat.deploy(chat.lab.change("m2"), SIDES, way="restart")

    assert chat.view().state == "promoted"
    wait_until(lambda: chat.answered_by("m2"), timeout_s=PATIENCE_S, what="an answer by m2")
    assert chat.failed() == 0
    assert chat.lab.observed()["instances"]["green-1"]["running"] == "m2"
    assert chat.lab.observed()["instances"]["blue-1"]["running"] == FIRST_RELEASE


def test_stop_and_start_announces_its_interruption_and_says_how_long_it_was(chat: Chat) -> None:
    chat.deploy(chat.lab.change("m2"), way="restart")

    view = chat.view()
    assert view.state == "promoted"
    assert view.plan
    (announced,) = view.plan.interruptions
    assert announced.startswith("blue-1 serves nobody while it is drained and started again")
    (measured,) = chat.notes("restart")
    assert measured.startswith("blue-1 did not answer for ")


BREAKERS: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "wrong shape": reshape_tensor,
    "missing tensor": remove_tensor,
    "no tokenizer": lambda model: spoil_tokenizer(model, "missing"),
    "tokenizer that is no JSON": lambda model: spoil_tokenizer(model, "not_json"),
    "tokenizer beyond the embedding": lambda model: spoil_tokenizer(model, "ids_beyond"),
    "tokenizer without its end token": lambda model: spoil_tokenizer(model, "no_eos"),
}


@pytest.mark.parametrize("strategy", [IN_PLACE, SIDES], ids=lambda s: s.strategy)
@pytest.mark.parametrize("breaker", BREAKERS.values(), ids=BREAKERS.keys())
def test_a_broken_model_is_refused_before_anything_is_touched(
    chat: Chat, strategy: Strategy, breaker: Callable[[Path], None]
) -> None:
    model = make_model(chat.lab.model_directory(f"broken-{time.monotonic_ns()}"), seed=3)
    breaker(model)
    with pytest.raises(TakenBackError, match=r"(?i)nothing (was|had been)"):
        chat.deploy(chat.lab.change("m3", model), strategy)

    assert chat.view().state == "aborted"
    assert chat.view().intents == ()
    assert chat.lab.observed() == chat.before


def test_a_model_that_is_not_the_one_asked_for_is_refused(chat: Chat) -> None:
    change = chat.lab.change("m3")
    (Path(change.artefact.path) / "README.md").write_text("put there since\n")
    with pytest.raises(TakenBackError, match=r"(?i)nothing (was|had been)"):
        chat.deploy(change)
    assert chat.lab.observed() == chat.before


@pytest.mark.parametrize(
    ("strategy", "way"),
    [(IN_PLACE, "hot_swap"), (IN_PLACE, "restart"), (SIDES, "restart")],
    ids=["hot swap", "stop and start", "blue-green"],
)
def test_a_model_that_loads_and_answers_wrongly_is_taken_back(
    chat: Chat, strategy: Strategy, way: str
) -> None:
    with pytest.raises(TakenBackError, match="france"):
        chat.deploy(chat.lying("m3"), strategy, way)

    assert chat.view().state == "rolled_back"
    assert chat.lab.observed() == chat.before
    if way == "hot_swap" or strategy is SIDES:
        assert chat.failed() == 0
    assert not any(row["release"] == "m3" for row in chat.load.rows()) or way == "hot_swap"


@pytest.mark.skipif(REAL, reason="shown with the simulator, whose processes end the same way")
def test_a_server_that_dies_in_a_hot_swap_comes_back_with_its_old_model(chat: Chat) -> None:
    def kill_once_it_swaps() -> None:
        wait_until(
            lambda: bool(chat.views()) and len(chat.view().intents) > _SWAP,
            timeout_s=PATIENCE_S,
            what="the swap to begin",
        )
        chat.lab.kill("blue-1")

    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_once_it_swaps)
        with pytest.raises(TakenBackError, match="Rolled back and verified"):
            chat.deploy(chat.lab.change("m2"), way="hot_swap")
        killed.result()
    assert chat.view().state == "rolled_back"
    assert chat.lab.observed() == chat.before


def test_taken_back_after_its_promotion_it_is_as_before(chat: Chat) -> None:
    chat.deploy(chat.lab.change("m2"), way="hot_swap")
    roll_back(chat.view().opened.deployment, "a person wants it back")

    assert chat.view().state == "rolled_back"
    assert chat.lab.observed() == chat.before
    assert chat.failed() == 0


def test_an_update_flow_alone_brings_a_model_as_well(chat: Chat) -> None:
    change = chat.lab.change("m2").model_copy(update={"way": "hot_swap"})
    assert update_model(change, IN_PLACE).state == "promoted"


def test_what_is_served_already_is_nothing_to_do(chat: Chat) -> None:
    change = chat.lab.change(FIRST_RELEASE, chat.lab.model_directory(FIRST_RELEASE))
    chat.deploy(change)
    assert chat.view().state == "aborted"
    assert "in place already" in chat.view().reason


def test_a_dry_run_shows_the_way_and_touches_nothing(chat: Chat) -> None:
    plan = deploy(chat.lab.change("m2"), IN_PLACE, environment="chat", dry_run=True)
    assert isinstance(plan, Plan)
    assert any("swapped hot" in note for note in plan.notes)
    assert chat.views() == []
    assert chat.lab.observed() == chat.before


def test_flags_of_our_own_are_refused(chat: Chat) -> None:
    change = chat.lab.change("m2", weight_version="other")
    with pytest.raises((TakenBackError, InvalidRequestError), match="weight-version"):
        chat.deploy(change)
    assert chat.lab.observed() == chat.before


@pytest.fixture
def replicas(
    prefect_api: PrefectServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Chat]:
    """Two servers that users are served by, and an idle one."""
    directory = tmp_path_factory.mktemp("replicas")
    become_host(monkeypatch, directory / "journal", environment="chat")
    lab = LabSglang(directory / "chat", blue=2, green=1, name="replicas")
    lab.start()
    try:
        save_blocks(lab.fleet)
        with lab.load(RATE_PER_S, directory / "load") as load:
            yield Chat(lab, load, directory / "journal", lab.observed())
    finally:
        lab.stop()


@pytest.mark.skipif(REAL, reason="three of the real ones are more than two cores carry")
def test_replicas_are_updated_one_after_the_other_without_a_failed_request(replicas: Chat) -> None:
    with pytest.raises(TakenBackError, match="france"):
        replicas.deploy(replicas.lying("m3"), BATCHES, way="hot_swap")
    assert replicas.lab.observed() == replicas.before
    # swapped while it was drained: no user has seen it
    assert not any(row["release"] == "m3" for row in replicas.load.rows())

    replicas.deploy(replicas.lab.change("m2"), BATCHES, way="restart")
    assert replicas.view().state == "promoted"
    running = {name: one["running"] for name, one in replicas.lab.observed()["instances"].items()}
    assert running == {"blue-1": "m2", "blue-2": "m2", "green-1": FIRST_RELEASE}
    assert replicas.failed() == 0
