"""What the plan of a model's release knows: the artefact, the servers, their answers, and room for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.gpu import LabGpu, LabGpus
from lab.model import ANSWERS, remove_tensor, reshape_tensor, spoil_tokenizer, truncate
from lab.sglang import FIRST_RELEASE, PROMPTS, LabSglang
from rules.change import ModelRelease
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState
from rules.model_memory import DEFAULT_CLAIM
from rules.model_plan import ModelSituation, ServerSituation
from rules.serving import ModelServing, ServingLimits
from rules.strategy import BlueGreen, InPlace, Strategy
from rules.undo import RemoveRelease, RestoreModel
from tasks.application import remove_release, restart_service
from tasks.fleet import observe_fleet
from tasks.model_files import read_model
from tasks.model_restore import restore_model
from tasks.model_stage import stage_model
from tasks.model_survey import _Survey, survey_model
from tests.requirements import need
from tests.tasks.modelling import INSTANCE, NEXT, PACE, SETTINGS, a_model, brought_back, switched

MIB = 1 << 20
IN_PLACE = InPlace(instance=INSTANCE)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    serving = ModelServing(prompts=PROMPTS[:1])
    directory = tmp_path_factory.mktemp("m")
    with LabSglang(directory, serving=serving, environment={"LAB_SGLANG": PACE}) as lab:
        brought_back(lab)
        yield lab


@pytest.fixture
def lab(running: LabSglang) -> LabSglang:
    brought_back(running)
    return running


def survey(
    lab: LabSglang,
    change: ModelRelease,
    strategy: Strategy = IN_PLACE,
    *,
    fleet: Fleet | None = None,
    before: FleetState | None = None,
) -> ModelSituation:
    fleet = fleet or lab.fleet
    return survey_model(change, strategy, fleet, before or observe_fleet(fleet))


def the_server(situation: ModelSituation) -> ServerSituation:
    (only,) = situation.servers.values()
    return only


def declaring(lab: LabSglang, **fields) -> Fleet:
    serving = lab.serving.model_copy(update=fields)
    return lab.fleet.model_copy(update={"serving": serving})


def without_running(before: FleetState, name: str) -> FleetState:
    state = before.instances[name].model_copy(update={"running": None})
    return before.model_copy(update={"instances": {**before.instances, name: state}})


# --- a good model ----------------------------------------------------------------------------------


def test_a_model_like_the_running_one_can_be_swapped_hot(lab):
    situation = survey(lab, lab.change(NEXT, a_model(lab, NEXT)))
    assert list(situation.servers) == [INSTANCE]
    assert situation.faults == ()
    server = the_server(situation)
    assert server.swap_refusals == ()
    assert [answer.text for answer in server.served.answers] == [ANSWERS[PROMPTS[0].text]]
    assert server.last_start_s is not None


def test_only_the_servers_that_the_strategy_changes_are_looked_at(lab):
    assert list(survey(lab, lab.change(NEXT, a_model(lab, NEXT)), BlueGreen()).servers) == ["green-1"]


def test_a_survey_touches_nothing(lab):
    before = lab.observed()
    survey(lab, lab.change(NEXT, a_model(lab, NEXT)))
    assert lab.observed() == before


# --- a bad one -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("truncated", truncate, "no whole safetensors file"),
        ("reshaped", reshape_tensor, "has the shape"),
        ("lacking", remove_tensor, "up_proj"),
        ("mute", lambda path: spoil_tokenizer(path, "not_json"), "tokenizer"),
        ("beyond", lambda path: spoil_tokenizer(path, "ids_beyond"), "tokenizer"),
    ],
)
def test_a_model_that_is_not_sound_is_refused_before_anything_is_touched(lab, name, spoil, words):
    before = lab.observed()
    with pytest.raises(InvalidRequestError, match=f"(?s){words}") as raised:
        survey(lab, lab.change(name, a_model(lab, name, spoil)))
    assert "othing was touched" in str(raised.value)
    assert lab.observed() == before


def test_another_digest_than_declared_is_refused(lab):
    change = lab.change(NEXT, a_model(lab, NEXT))
    wrong = change.artefact.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InvalidRequestError, match="digest"):
        survey(lab, change.model_copy(update={"artefact": wrong}))


def test_a_secret_among_the_flags_is_refused(lab):
    with pytest.raises(InvalidRequestError, match="are secrets"):
        survey(lab, lab.change(NEXT, a_model(lab, NEXT), api_key="x"))


def test_an_id_that_is_taken_is_a_fault(lab):
    (words,) = survey(lab, lab.change(FIRST_RELEASE, a_model(lab, NEXT))).faults
    assert "already with other content" in words


# --- hot swap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("wide", {"hidden": 128}, "another type or shape"),
        ("deep", {"layers": 3}, "tensors are not in the running model"),
    ],
)
def test_another_shape_is_not_swapped_hot(lab, name, how, words):
    refusals = the_server(survey(lab, lab.change(name, a_model(lab, name, **how)))).swap_refusals
    assert words in "; ".join(refusals)


def test_another_tokenizer_is_not_swapped_hot(lab):
    other = a_model(lab, "other", lambda path: spoil_tokenizer(path, "other"))
    refusals = the_server(survey(lab, lab.change("other", other))).swap_refusals
    assert any("tokenizer.json differs" in words for words in refusals)


def test_other_flags_are_not_swapped_hot(lab):
    change = lab.change(NEXT, a_model(lab, NEXT), context_length=1024)
    (words,) = the_server(survey(lab, change)).swap_refusals
    assert "context-length" in words


def test_a_stopped_server_is_not_swapped_and_its_peer_is_asked_how_it_answers(lab):
    before = without_running(observe_fleet(lab.fleet), "green-1")
    server = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)), BlueGreen(), before=before))
    assert server.swap_refusals == ("no server runs that weights could be loaded into",)
    assert server.last_start_s is None
    assert [answer.text for answer in server.served.answers] == [ANSWERS[PROMPTS[0].text]]


def test_a_running_release_that_nobody_knows_is_not_swapped(lab):
    flags = lab.root(INSTANCE) / "releases" / FIRST_RELEASE / "server.yaml"
    kept = flags.read_bytes()
    flags.unlink()
    try:
        (words,) = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)))).swap_refusals
    finally:
        flags.write_bytes(kept)
    assert "not known" in words


def test_a_server_that_was_given_another_path_is_not_swapped(lab):
    body = {"model_path": str(lab.model_directory(FIRST_RELEASE)), "weight_version": FIRST_RELEASE}
    httpx.post(f"{lab.server_url(INSTANCE)}/update_weights_from_disk", json=body).raise_for_status()
    try:
        (words,) = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)))).swap_refusals
    finally:
        lab.kill(INSTANCE)
    assert "it was started with the model" in words


def test_a_server_that_serves_another_release_than_its_link_is_refused(lab):
    fleet = lab.fleet
    switched(lab, fleet.instance(INSTANCE), lab.change(NEXT, a_model(lab, NEXT)))
    with pytest.raises(InvalidRequestError, match=rf"serves {FIRST_RELEASE}, but its link points to {NEXT}"):
        survey(lab, lab.change("m3", a_model(lab, "m3", seed=3)))


# --- answers ---------------------------------------------------------------------------------------


def test_without_prompts_people_are_told_that_answers_are_not_tested(lab):
    situation = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=declaring(lab, prompts=()))
    assert "No prompts are declared" in "; ".join(situation.notes)
    assert the_server(situation).served.answers == ()


def test_where_nobody_answers_there_is_nothing_to_compare_with_and_that_is_told(lab):
    huge = PROMPTS[0].model_copy(update={"text": "word " * 5000})
    situation = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=declaring(lab, prompts=(huge,)))
    assert the_server(situation).served.answers == ()
    assert "does not answer a declared prompt now" in "; ".join(situation.notes)
    assert "no times to compare with" in "; ".join(situation.notes)


# --- room ------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabGpus:
    """This process with our nvidia-smi first; NVML is the machine's."""
    need("gcc", package="gcc")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver of its own, which is asked first")
    made = LabGpus(tmp_path / "gpus")
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LAB_NVML", made.environment["LAB_NVML"])
    return made


def test_without_a_gpu_the_hosts_memory_counts_and_people_are_told(lab):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    situation = survey(lab, lab.change(NEXT, a_model(lab, NEXT)))
    assert the_server(situation).memory == ()
    assert "has no GPU" in "; ".join(situation.notes)
    limits = ServingLimits(memory_reserve_ratio=1e9)
    greedy = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=declaring(lab, limits=limits))
    assert any("the host's memory (no GPU)" in words for words in greedy.faults)


def test_a_running_server_may_use_what_it_uses_and_the_growth(lab, gpus):
    gpus.say(LabGpu(total_mib=8000, used_mib=3000))
    (limit,) = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)))).memory
    assert (limit.gpu, limit.most_bytes) == (0, 3800 * MIB)


def test_a_stopped_server_will_claim_its_share(lab, gpus):
    gpus.say(LabGpu(total_mib=8000, used_mib=1000))
    before = without_running(observe_fleet(lab.fleet), INSTANCE)
    change = lab.change(NEXT, a_model(lab, NEXT), mem_fraction_static=0.5)
    (limit,) = the_server(survey(lab, change, before=before)).memory
    assert limit.most_bytes == (1000 + 3500 + 800) * MIB
    # nothing declared: nearly all, so that with the growth on top the GPU itself is the limit
    (limit,) = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)), before=before)).memory
    assert limit.most_bytes == 8000 * MIB
    assert f"{DEFAULT_CLAIM} of what is free" in limit.words


def test_only_the_gpus_of_the_server_are_looked_at(lab, gpus):
    gpus.say(*(LabGpu(total_mib=8000, used_mib=used) for used in (100, 200, 300)))
    fleet = lab.fleet
    members = tuple(one.model_copy(update={"gpus": (1,)}) for one in fleet.instances)
    one_each = fleet.model_copy(update={"instances": members})
    situation = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=one_each)
    assert [limit.gpu for limit in the_server(situation).memory] == [1]


def test_a_model_that_does_not_fit_its_gpu_is_a_fault_with_the_arithmetic(lab, gpus):
    gpus.say(LabGpu(total_mib=1, used_mib=1))
    limits = ServingLimits(memory_reserve_ratio=100)
    (words,) = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=declaring(lab, limits=limits)).faults
    assert words.startswith(f"{INSTANCE}: GPU 0 (Lab GPU")
    assert "needed" in words


def test_a_model_that_does_not_fit_the_disk_is_a_fault_unless_it_lies_there_already(lab):
    fleet, change = lab.fleet, lab.change(NEXT, a_model(lab, NEXT))
    huge = read_model(lab.model_directory(NEXT)).model_copy(update={"size_bytes": 1 << 60})
    look = _Survey(change, fleet, observe_fleet(fleet), huge)
    look.server(fleet.instance(INSTANCE))
    (words,) = look.faults
    assert words.startswith(f"{INSTANCE}: the disk of {lab.root(INSTANCE)}: ")
    stage_model(fleet.instance(INSTANCE), change, serving=lab.serving, deployment="chat-1", settings=SETTINGS)
    look = _Survey(change, fleet, observe_fleet(fleet), huge)
    look.server(fleet.instance(INSTANCE))
    assert look.faults == []


# --- what users have already -----------------------------------------------------------------------


def test_what_users_have_already_is_nothing_to_do(lab):
    have(lab, INSTANCE, lab.change(NEXT, a_model(lab, NEXT)))
    assert survey(lab, lab.change(NEXT, a_model(lab, NEXT))) == ModelSituation(servers={})


def test_other_flags_under_the_name_that_users_have_are_a_fault_and_not_nothing_to_do(lab):
    have(lab, INSTANCE, lab.change(NEXT, a_model(lab, NEXT)))
    change = lab.change(NEXT, a_model(lab, NEXT), context_length=1024)
    (words,) = survey(lab, change, BlueGreen()).faults
    assert words.startswith(INSTANCE)
    assert "is there already with other flags" in words


def test_a_key_file_that_cannot_be_used_is_a_fault_before_anything_stops(lab, tmp_path):
    fleet = declaring(lab, admin_key_file=str(tmp_path / "key"))
    (words,) = survey(lab, lab.change(NEXT, a_model(lab, NEXT)), fleet=fleet).faults
    assert f"the key file {tmp_path / 'key'} cannot be read" in words


def test_the_idle_side_is_compared_with_what_users_are_answered(lab):
    """It runs another release: its times are this server's, but its texts are not what users have."""
    have(lab, "green-1", lab.change("m0", a_model(lab, "m0", seed=5, answers={})))
    try:
        server = the_server(survey(lab, lab.change(NEXT, a_model(lab, NEXT)), BlueGreen()))
    finally:
        green = lab.fleet.instance("green-1")
        back = RestoreModel(instance="green-1", release=FIRST_RELEASE, running=FIRST_RELEASE)
        restore_model(green, lab.serving, back, settings=SETTINGS)
        step = RemoveRelease(instance="green-1", release="m0")
        remove_release(green, step, deployment="chat-1")
    assert [answer.text for answer in server.served.answers] == [ANSWERS[PROMPTS[0].text]]


def have(lab: LabSglang, name: str, change: ModelRelease) -> None:
    """Have a server run a release."""
    instance = lab.fleet.instance(name)
    switched(lab, instance, change)
    restart_service(instance, settings=SETTINGS)
    lab.wait_until_ready(name)
