"""A model's server, taken back: hot as long as it lives, else by a restart; repeating it changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from lab.model import ModelBehaviour, truncate
from lab.sglang import FIRST_RELEASE, LabSglang
from rules.errors import UndoFailedError
from rules.fleet import Instance
from rules.undo import RestoreModel
from tasks.application import restart_service, service_runs
from tasks.model_restore import restore_model
from tasks.model_server import hot_swap
from tasks.sglang import ModelServerError, server_of, update_weights
from tests.tasks.modelling import (
    INSTANCE,
    NEXT,
    SETTINGS,
    a_model,
    a_request,
    brought_back,
    one_server,
    pid,
    switched,
    wait_until_busy,
)

BACK = RestoreModel(instance=INSTANCE, release=FIRST_RELEASE, running=FIRST_RELEASE)
HOT = BACK.model_copy(update={"hot": True})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    with one_server(tmp_path_factory.mktemp("m"), admin_key="a-secret") as lab:
        brought_back(lab)
        yield lab


@pytest.fixture
def lab(running: LabSglang) -> LabSglang:
    brought_back(running)
    return running


@pytest.fixture
def instance(lab: LabSglang) -> Instance:
    return lab.fleet.instance(INSTANCE)


def seen(lab: LabSglang) -> dict[str, object]:
    """All that can be seen of the server but which releases lie ready."""
    return {name: value for name, value in lab.observed()["instances"][INSTANCE].items() if name != "staged"}


def restore(lab: LabSglang, step: RestoreModel) -> None:
    restore_model(lab.fleet.instance(INSTANCE), lab.serving, step, settings=SETTINGS)


def swapped(lab: LabSglang, instance: Instance) -> None:
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)


def test_a_server_that_was_swapped_is_swapped_back_in_the_same_process(lab, instance):
    before, process = seen(lab), pid(lab)
    swapped(lab, instance)
    for _ in range(2):
        restore(lab, HOT)
        assert (seen(lab), pid(lab)) == (before, process)


def test_nothing_was_swapped_yet_and_nothing_changes(lab, instance):
    before, process = seen(lab), pid(lab)
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    restore(lab, HOT)
    assert (seen(lab), pid(lab)) == (before, process)


def test_a_server_as_recorded_is_not_restarted(lab):
    before, process = seen(lab), pid(lab)
    restore(lab, BACK)
    assert (seen(lab), pid(lab)) == (before, process)


def test_a_restarted_server_is_restarted_into_the_recorded_release(lab, instance):
    before = seen(lab)
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    restart_service(instance, settings=SETTINGS)
    lab.wait_until_ready(INSTANCE)
    process = pid(lab)
    restore(lab, BACK)
    assert seen(lab) == before
    assert pid(lab) != process


def test_a_server_that_is_dead_is_started_with_the_recorded_release(lab, instance):
    before = seen(lab)
    swapped(lab, instance)
    lab.kill(INSTANCE)
    restore(lab, HOT)
    assert seen(lab) == before


def test_a_swap_that_is_still_under_way_comes_before_the_way_back(lab, instance):
    """The deployment was cut off while its update waited for a long answer; the server goes on with it."""
    before, server = seen(lab), server_of(instance, lab.serving)
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    path = f"{lab.root(INSTANCE)}/current/model"
    with a_request(lab, max_new_tokens=800) as got:
        wait_until_busy(lab)
        with pytest.raises(ModelServerError, match="ReadTimeout"):
            update_weights(server, model_path=path, release=NEXT, timeout_s=0.2)
        assert not got
        restore(lab, HOT)
        assert [answer.status_code for answer in got] == [200]
    assert seen(lab) == before


def test_a_server_that_dies_in_the_middle_of_the_way_back_is_started(lab, instance):
    before = seen(lab)
    swapped(lab, instance)
    with a_request(lab, max_new_tokens=1500) as got:
        wait_until_busy(lab)
        timer = threading.Timer(0.3, lambda: lab.kill(INSTANCE))
        timer.start()
        restore(lab, HOT)
        timer.join()
    assert not got
    assert seen(lab) == before


def test_other_weights_under_the_recorded_name_are_not_taken_for_it(lab, instance):
    """The server says the recorded release and has the other one's tensors: its word is not taken for it."""
    before = seen(lab)
    swapped(lab, instance)
    body = {"new_version": FIRST_RELEASE}
    headers = {"Authorization": "Bearer a-secret"}
    url = f"{lab.server_url(INSTANCE)}/update_weight_version"
    httpx.post(url, json=body, headers=headers).raise_for_status()
    restore(lab, HOT)
    assert seen(lab) == before


def test_without_the_key_for_its_admin_routes_it_is_restarted(lab, instance):
    before, process = seen(lab), pid(lab)
    swapped(lab, instance)
    keyless = lab.serving.model_copy(update={"admin_key_file": None})
    restore_model(instance, keyless, HOT, settings=SETTINGS)
    assert seen(lab) == before
    assert pid(lab) != process


def test_what_did_not_run_before_runs_no_more_and_has_no_link(lab, instance):
    swapped(lab, instance)
    for _ in range(2):
        restore(lab, RestoreModel(instance=INSTANCE, release=None, running=None))
        assert not service_runs(instance)
        assert lab.observed()["instances"][INSTANCE]["link"] is None


def test_a_server_that_never_gets_ready_is_restarted_into_the_recorded_release(lab, instance):
    before = seen(lab)
    switched(
        lab, instance, lab.change("quiet", a_model(lab, "quiet", behaviour=ModelBehaviour(never_ready=True)))
    )
    restart_service(instance, settings=SETTINGS)
    restore(lab, BACK)
    assert seen(lab) == before


def test_a_recorded_release_that_does_not_come_up_is_a_failed_way_back(lab, instance):
    spoiled = a_model(lab, "spoiled")
    switched(lab, instance, lab.change("spoiled", spoiled))
    truncate(lab.root(INSTANCE) / "releases" / "spoiled" / "model")
    step = RestoreModel(instance=INSTANCE, release="spoiled", running="spoiled", hot=True)
    began = time.monotonic()
    with pytest.raises(UndoFailedError, match="does not come back on spoiled"):
        restore(lab, step)
    assert time.monotonic() - began < 15
