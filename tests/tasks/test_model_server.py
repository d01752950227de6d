"""A model's server: drained, swapped hot, verified by what it has loaded, asked, and its memory looked at."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.gpu import LabGpu, LabGpus
from lab.model import ANSWERS, ModelBehaviour, remove_tensor, truncate
from lab.model_weights import read_tensors
from lab.sglang import FIRST_RELEASE, PROMPTS, LabSglang
from rules.errors import RevokedError, StepFailedError
from rules.fleet import Instance
from rules.model_actions import CheckMemory, DrainRequests, MemoryLimit, TestInference
from rules.model_hash import gpu_checksum
from rules.serving import DeclaredPrompt, ModelServing, ServedBefore, ServingLimits
from tasks.application import restart_service
from tasks.model_files import read_model
from tasks.model_loaded import compare_with_files
from tasks.model_server import (
    check_memory,
    drain_requests,
    hot_swap,
    measure_serving,
    test_inference,
    verify_model,
)
from tests.requirements import need
from tests.tasks.modelling import (
    INSTANCE,
    NEXT,
    SETTINGS,
    a_model,
    a_request,
    answering,
    brought_back,
    one_server,
    pid,
    switched,
    wait_until_busy,
)

test_inference.__test__ = False
MIB = 1 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    with one_server(tmp_path_factory.mktemp("m")) as lab:
        brought_back(lab)
        yield lab


@pytest.fixture
def lab(running: LabSglang) -> LabSglang:
    """The server, with its first release."""
    brought_back(running)
    return running


@pytest.fixture
def instance(lab: LabSglang) -> Instance:
    return lab.fleet.instance(INSTANCE)


# --- drain -----------------------------------------------------------------------------------------


def drain(lab: LabSglang, *, drain_s: float = 20.0, cut: bool = False, **more) -> str:
    action = DrainRequests(instance=INSTANCE, drain_s=drain_s, cut=cut)
    return drain_requests(lab.fleet.instance(INSTANCE), action, serving=lab.serving, **more)


def test_running_requests_are_waited_for_and_counted(lab):
    with a_request(lab, max_new_tokens=150, count=2) as got:
        wait_until_busy(lab, running=2)
        words = drain(lab)
        answers = [answer.status_code for answer in got]
    assert answers == [200, 200]
    assert words.startswith(f"{INSTANCE}: no request is left after ")
    assert words.endswith("at most 2 running and 0 waiting at a time")


def test_an_idle_server_is_drained_at_once(lab):
    assert "at most 0 running and 0 waiting" in drain(lab)


def test_requests_that_are_left_at_the_deadline_fail_the_step_and_go_on(lab):
    with a_request(lab, max_new_tokens=300) as got:
        wait_until_busy(lab)
        with pytest.raises(StepFailedError, match=r"still 1 running and 0 waiting after 0\.5 s.*not stopped"):
            drain(lab, drain_s=0.5)
    assert got[0].status_code == 200


def test_they_may_be_cut_off_where_that_was_declared(lab):
    with a_request(lab, max_new_tokens=300):
        wait_until_busy(lab)
        assert "still 1 running and 0 waiting after 0.5 s" in drain(lab, drain_s=0.5, cut=True)


def test_a_server_that_does_not_answer_has_nothing_to_wait_for(lab):
    lab.kill(INSTANCE)
    assert "no server answers, so there is nothing to wait for" in drain(lab)


def test_a_server_that_does_not_say_is_not_taken_for_idle(lab, instance):
    with answering({"/v1/loads": (500, "busy")}) as server:
        other = instance.model_copy(update={"probe": instance.probe.model_copy(update={"url": server.url})})
        action = DrainRequests(instance=INSTANCE, drain_s=0.5, cut=False)
        with pytest.raises(StepFailedError, match=r"answered 500: busy.* after 0\.5 s"):
            drain_requests(other, action, serving=lab.serving)


def test_draining_ends_when_the_deployment_must_not_go_on(lab):
    def revoked() -> None:
        raise RevokedError("cancelled")

    with a_request(lab, max_new_tokens=100):
        wait_until_busy(lab)
        with pytest.raises(RevokedError):
            drain(lab, still_wanted=revoked)


# --- hot swap --------------------------------------------------------------------------------------


def test_a_hot_swap_loads_the_release_under_the_same_name_in_the_same_process(lab, instance):
    change, process = lab.change(NEXT, a_model(lab, NEXT)), pid(lab)
    before = lab.observed()["instances"][INSTANCE]
    switched(lab, instance, change)
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    after = lab.observed()["instances"][INSTANCE]
    assert (after["running"], pid(lab)) == (NEXT, process)
    assert after["served_model_name"] == before["served_model_name"]
    assert after["tensors"] != before["tensors"]
    words = verify_model(instance, lab.serving, change)
    assert words.startswith(f"{INSTANCE}: {NEXT} is loaded as {lab.root(INSTANCE)}/current/model; ")
    assert "tensors have the file's checksum" in words
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)  # once more is the same
    assert lab.observed()["instances"][INSTANCE] == after


def test_requests_that_run_are_answered_before_the_swap(lab, instance):
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    with a_request(lab, max_new_tokens=100) as got:
        wait_until_busy(lab)
        hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    meta = got[0].json()["meta_info"]
    assert (got[0].status_code, meta["completion_tokens"], meta["weight_version"]) == (
        200,
        100,
        FIRST_RELEASE,
    )


def test_a_file_that_was_spoiled_after_staging_never_reaches_the_server(lab, instance):
    process = pid(lab)
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    truncate(lab.root(INSTANCE) / "releases" / NEXT / "model")
    with pytest.raises(StepFailedError, match=r"somebody changed them .*Nothing was swapped"):
        hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    assert (lab.observed()["instances"][INSTANCE]["running"], pid(lab)) == (FIRST_RELEASE, process)


def test_a_link_to_another_release_is_not_swapped_to(lab, instance):
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    (lab.root(INSTANCE) / "current").unlink()
    (lab.root(INSTANCE) / "current").symlink_to(f"releases/{FIRST_RELEASE}")
    with pytest.raises(StepFailedError, match=rf"its link points to {FIRST_RELEASE}, not to {NEXT}"):
        hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)


def test_a_server_that_another_path_was_given_to_is_not_swapped(lab, instance):
    switched(lab, instance, lab.change(NEXT, a_model(lab, NEXT)))
    elsewhere = str(lab.model_directory(FIRST_RELEASE))
    body = {"model_path": elsewhere, "weight_version": FIRST_RELEASE}
    httpx.post(f"{lab.server_url(INSTANCE)}/update_weights_from_disk", json=body).raise_for_status()
    try:
        with pytest.raises(StepFailedError, match="would rename what clients ask for"):
            hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    finally:
        lab.kill(INSTANCE)  # so that the next test begins with the name that it had


def test_a_server_that_dies_of_it_is_said_to_be_gone(lab, instance):
    """The digest is right, but the shape is another one than the running model's."""
    wider = a_model(lab, "wider", hidden=128)
    switched(lab, instance, lab.change(NEXT, wider))
    with pytest.raises(StepFailedError, match="the server ended while it was swapped"):
        hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    assert lab.observed()["instances"][INSTANCE]["running"] is None


# --- verify ----------------------------------------------------------------------------------------


def restarted(lab: LabSglang, instance: Instance) -> None:
    restart_service(instance, settings=SETTINGS)
    lab.wait_until_ready(INSTANCE)


def test_a_restarted_server_is_verified_by_name_architecture_and_checksums(lab, instance):
    change = lab.change(NEXT, a_model(lab, NEXT), served_model_name="prod")
    switched(lab, instance, change)
    restarted(lab, instance)
    words = verify_model(instance, lab.serving, change)
    assert f"{NEXT} is loaded as prod; " in words
    # as they are: embedding, head and all norms; o_proj and down_proj too; what is joined is not compared
    agreeing = int(words.split("; ")[1].split(" tensors")[0])
    assert agreeing == 3 + 2 * 4


def test_another_release_than_the_one_deployed_is_no_success(lab, instance):
    change = lab.change(NEXT, a_model(lab, NEXT))
    switched(lab, instance, change)
    with pytest.raises(StepFailedError, match=f"its weight version is {FIRST_RELEASE}"):
        verify_model(instance, lab.serving, change)


def test_a_renamed_model_is_no_success(lab, instance):
    change = lab.change(NEXT, a_model(lab, NEXT), served_model_name="prod")
    switched(lab, instance, change)
    restarted(lab, instance)
    path = f"{lab.root(INSTANCE)}/current/model"
    body = {"model_path": path, "weight_version": NEXT}
    httpx.post(f"{lab.server_url(INSTANCE)}/update_weights_from_disk", json=body).raise_for_status()
    with pytest.raises(StepFailedError, match=f"it is served as {path}, not as prod"):
        verify_model(instance, lab.serving, change)


def test_a_server_that_only_says_the_release_is_caught_by_its_checksums(lab, instance):
    change = lab.change(NEXT, a_model(lab, NEXT))
    switched(lab, instance, change)
    body = {"new_version": NEXT}
    httpx.post(f"{lab.server_url(INSTANCE)}/update_weight_version", json=body).raise_for_status()
    try:
        with pytest.raises(
            StepFailedError, match=r"embed_tokens\.weight: the server has \w{16}, the file \w{16}"
        ):
            verify_model(instance, lab.serving, change)
    finally:
        lab.kill(INSTANCE)


def test_a_tensor_that_the_files_lack_and_the_server_kept_is_caught(lab, instance):
    """The server reports success and keeps the old tensor: nothing else would notice."""
    lacking = a_model(lab, "lacking", lambda path: remove_tensor(path, "model.norm.weight"))
    change = lab.change(NEXT, lacking)
    switched(lab, instance, change)
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    with pytest.raises(StepFailedError, match=r"model\.norm\.weight: the server has it, the files do not"):
        verify_model(instance, lab.serving, change)


def test_where_checksums_cannot_be_had_that_is_said(lab):
    facts, directory = read_model(lab.model_directory(FIRST_RELEASE)), lab.model_directory(FIRST_RELEASE)
    info = {"/server_info": (200, "{}")}
    for answers, words in (
        (info, "this server has no route for them"),
        (
            {**info, "/weights_checker": (400, "why not")},
            "the server cannot compute them: why not",
        ),
        (
            {**info, "/weights_checker": (200, '{"ranks": [{"checksums": {"other.name": "0"}}]}')},
            "no tensor can be compared with the file by checksum",
        ),
    ):
        with answering(answers) as server:
            compared = compare_with_files(server, facts, directory, dtype="auto")
        assert (compared.agreeing, compared.faults) == (0, ())
        assert words in compared.in_words


def test_a_server_on_a_gpu_is_compared_by_the_checksum_that_gpus_compute(lab):
    facts, directory = read_model(lab.model_directory(FIRST_RELEASE)), lab.model_directory(FIRST_RELEASE)
    name = "model.embed_tokens.weight"
    right = gpu_checksum(read_tensors(directory / "model.safetensors")[name][2])
    for checksum, faults in ((right, 0), ("0" * 16, 1)):
        ranks = json.dumps({"success": True, "ranks": [{"checksums": {name: checksum}}]})
        said = {"/server_info": (200, '{"device": "cuda"}'), "/weights_checker": (200, ranks)}
        with answering(said) as server:
            compared = compare_with_files(server, facts, directory, dtype="auto")
        assert (compared.agreeing, len(compared.faults)) == (1 - faults, faults)


# --- inference -------------------------------------------------------------------------------------


def ask(lab: LabSglang, before: ServedBefore, serving: ModelServing | None = None):
    action = TestInference(instance=INSTANCE, before=before)
    return test_inference(lab.fleet.instance(INSTANCE), serving or lab.serving, action)


def test_a_good_model_answers_as_declared_and_as_fast_as_before(lab, instance):
    before = measure_serving(instance, lab.serving)
    assert [answer.prompt for answer in before.answers] == ["france", "sum", "long"]
    assert before.of("long").tokens_per_s > 20
    answers = ask(lab, before)
    assert [answer.text for answer in answers[:2]] == list(ANSWERS.values())


def test_a_model_that_loads_but_answers_wrongly_fails_with_all_its_faults(lab, instance):
    before = measure_serving(instance, lab.serving)
    wrong = a_model(lab, "wrong", answers={"The capital of France is": " Rome."})
    switched(lab, instance, lab.change(NEXT, wrong))
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    with pytest.raises(StepFailedError, match="does not answer as declared") as raised:
        ask(lab, before)
    assert "france: nothing in the answer matches '\\\\bParis\\\\b': it answered ' Rome.'" in str(
        raised.value
    )
    assert "sum: nothing in the answer matches" in str(raised.value)


def strict(lab: LabSglang) -> ModelServing:
    """As declared, but with the limits that are the default: the lab's are those of a busy machine."""
    return lab.serving.model_copy(update={"limits": ServingLimits()})


def at_a_pace(before: ServedBefore, *, first_token_s: float, tokens_per_s: float) -> ServedBefore:
    """The same answers, at a pace that no busy machine changes."""
    pace = {"first_token_s": first_token_s, "tokens_per_s": tokens_per_s}
    return ServedBefore(answers=tuple(answer.model_copy(update=pace) for answer in before.answers))


def test_a_slow_model_fails_with_its_figures(lab, instance):
    before = at_a_pace(measure_serving(instance, lab.serving), first_token_s=0.05, tokens_per_s=200)
    slow = a_model(lab, "slow", behaviour=ModelBehaviour(first_token_s=0.4, tokens_per_s=60))
    switched(lab, instance, lab.change(NEXT, slow))
    hot_swap(instance, lab.serving, NEXT, settings=SETTINGS)
    with pytest.raises(StepFailedError, match=r"france: first token after \d+\.\d{3} s") as raised:
        ask(lab, before, strict(lab))
    assert "long: " in str(raised.value)
    assert "tokens/s" in str(raised.value)


def test_a_prompt_that_gets_no_answer_is_a_fault_among_the_others(lab):
    prompts = (
        DeclaredPrompt(name="huge", text="word " * 5000),
        PROMPTS[0].model_copy(update={"matches": "Rome"}),
    )
    with pytest.raises(
        StepFailedError, match=r"huge: .*context length.*france: nothing in the answer matches"
    ):
        ask(lab, ServedBefore(), ModelServing(prompts=prompts))


def test_a_cold_first_answer_is_asked_for_once_more(lab, instance):
    """Only the first after a start is slow: a pause holds it up."""
    before = at_a_pace(measure_serving(instance, lab.serving), first_token_s=1.0, tokens_per_s=1)
    url = lab.server_url(INSTANCE)
    httpx.post(f"{url}/pause_generation", json={"mode": "in_place"}).raise_for_status()
    timer = threading.Timer(3.0, lambda: httpx.post(f"{url}/continue_generation", json={}))
    timer.start()
    try:
        first, *_ = ask(lab, before, strict(lab))
    finally:
        timer.join()
    assert first.first_token_s < 2  # twice that of before is allowed


# --- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def gpus(tmp_path, monkeypatch: pytest.MonkeyPatch) -> LabGpus:
    """This process with our nvidia-smi first; NVML is the machine's."""
    need("gcc", package="gcc")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver of its own, which is asked first")
    made = LabGpus(tmp_path / "gpus")
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LAB_NVML", made.environment["LAB_NVML"])
    return made


def limit(gpu: int, mib: int) -> MemoryLimit:
    return MemoryLimit(gpu=gpu, most_bytes=mib * MIB, words="6,000 in use before")


def look(instance: Instance, *limits: MemoryLimit) -> str:
    return check_memory(instance, CheckMemory(instance=INSTANCE, limits=limits))


def test_memory_within_its_limits_is_told_with_figures(instance, gpus):
    gpus.say(LabGpu(total_mib=8192, used_mib=6000), LabGpu(total_mib=8192, used_mib=100))
    words = look(instance, limit(0, 6500), limit(1, 200))
    assert words == (
        f"{INSTANCE}: GPU 0: {6000 * MIB:,} bytes in use, within {6500 * MIB:,}; "
        f"GPU 1: {100 * MIB:,} bytes in use, within {200 * MIB:,}"
    )


def test_memory_beyond_its_limit_fails_with_figures(instance, gpus):
    gpus.say(LabGpu(total_mib=8192, used_mib=7000))
    with pytest.raises(
        StepFailedError, match=rf"GPU 0: {7000 * MIB:,} bytes in use, {6500 * MIB:,} are the most"
    ):
        look(instance, limit(0, 6500))


def test_a_gpu_that_is_gone_fails_and_one_that_does_not_say_is_told(instance, gpus):
    gpus.say(LabGpu(total_mib=None, used_mib=None))
    assert "does not say" in look(instance, limit(0, 6500))
    with pytest.raises(StepFailedError, match="GPU 1 is gone"):
        look(instance, limit(1, 6500))


def test_no_gpu_is_an_answer(instance, gpus):
    gpus.unload()
    assert look(instance) == f"{INSTANCE}: no nvidia-smi with a device"
