"""Checks of how an SGLang server swaps its weights and pauses; see `lab.sglang_probe`."""

from __future__ import annotations

import time

import httpx

from lab.contract import ContractError, expect
from lab.model import make_model, remove_tensor, reshape_tensor, spoil_tokenizer
from lab.model_weights import read_tensors
from lab.sglang_contract import ANSWER, FREE_PROMPT, PROMPT, Asking, Contract, check, checksums_of

_OK, _BAD = httpx.codes.OK, httpx.codes.BAD_REQUEST
_PATIENCE_S = 2.0
_A_MOMENT_S = 0.5
_MISSING = "model.layers.0.mlp.down_proj.weight"


# --- swapping weights -------------------------------------------------------------------------------------


@check
def a_swap_changes_weights_version_and_served_name(server: Contract) -> None:
    """The tokenizer is not loaded again."""
    other = server.other()
    with server.restored():
        answer = server.swap(other, "v2")
        expect(answer.status_code == _OK and answer.json()["success"] is True, "success", answer.text)
        info = server.info()
        expect(info["model_path"] == info["served_model_name"] == str(other), "the new path", info)
        expect(info["weight_version"] == "v2", "v2", info)
        expect(info["tokenizer_path"] == str(server.model), "the old tokenizer", info)
        expect(
            server.checksums() == checksums_of(read_tensors(other / "model.safetensors")),
            "new tensors",
            "others",
        )
        said = server.say(FREE_PROMPT)
        expect(said["meta_info"]["weight_version"] == "v2", "v2 in answers", said)
    expect(server.say(FREE_PROMPT)["text"] != said["text"], "another text from other weights", said)


@check
def a_swap_without_a_version_keeps_the_old_one(server: Contract) -> None:
    """So the version must always be sent; it can be set alone, too."""
    with server.restored():
        server.swap(server.other())
        expect(server.info()["weight_version"] == server.version, server.version, server.info())
        server.post("/update_weight_version", {"new_version": "v3"})
        expect(server.info()["weight_version"] == "v3", "v3", server.info())


@check
def a_swap_through_the_same_link_changes_no_name(server: Contract) -> None:
    """The link is read again: what it points to now is loaded."""
    link = server.scratch / "link"
    link.symlink_to(server.other())
    with server.restored():
        server.swap(link, "v2")
        first = server.say(FREE_PROMPT)["text"]
        link.unlink()
        link.symlink_to(server.other(seed=3))
        server.swap(link, "v3")
        info = server.info()
        expect(info["served_model_name"] == info["model_path"] == str(link), "the link's text", info)
        expect(server.say(FREE_PROMPT)["text"] != first, "the other model's text", first)
    link.unlink()


@check
def a_swap_to_nothing_is_refused_and_leaves_all(server: Contract) -> None:
    """A directory that does not exist."""
    before = (server.info(), server.checksums())
    refused = server.swap(server.scratch / "nothing", "v9")
    expect(refused.status_code == _BAD and refused.json()["success"] is False, "400", refused.text)
    expect((server.info(), server.checksums()) == before, "all as before", server.info())


@check
def a_swap_with_a_missing_tensor_says_success_and_keeps_the_old_one(server: Contract) -> None:
    """The trap: only checksums tell."""
    partial = make_model(server.scratch / "partial", seed=2)
    remove_tensor(partial, _MISSING)
    before = server.checksums()
    with server.restored():
        answer = server.swap(partial, "v2")
        expect(answer.status_code == _OK and answer.json()["success"] is True, "success", answer.text)
        now = server.checksums()
        expect(now[_MISSING] == before[_MISSING], "the old tensor", now)
        expect(now["lm_head.weight"] != before["lm_head.weight"], "new tensors beside it", now)


@check
def a_swap_with_more_rows_than_there_is_room_for_may_say_success(server: Contract) -> None:
    """The trap: of a layer split by rows the first ones are taken; elsewhere the server dies of it."""
    longer = make_model(server.scratch / "longer", seed=2)
    reshape_tensor(longer, "model.layers.0.mlp.up_proj.weight")
    with server.restored():
        answer = server.swap(longer, "v2")
        expect(answer.status_code == _OK and answer.json()["success"] is True, "success", answer.text)
        expected = checksums_of(read_tensors(server.other() / "model.safetensors"))
        expect(server.checksums() == expected, "the tensors without the rows beyond", server.checksums())


@check
def a_swap_does_not_load_the_tokenizer(server: Contract) -> None:
    """The trap: a broken one is noticed at the next start."""
    broken = make_model(server.scratch / "tokenizer", seed=2)
    spoil_tokenizer(broken, "not_json")
    with server.restored():
        answer = server.swap(broken, "v2")
        expect(answer.status_code == _OK and answer.json()["success"] is True, "success", answer.text)
        expect(server.say()["text"] == ANSWER, ANSWER, "another text")


@check
def a_swap_waits_for_running_requests_and_new_ones_wait_for_it(server: Contract) -> None:
    """So no request fails, and none has a mixture."""
    with server.restored(), server.busy() as old:
        swapping = Asking(lambda: dict(server.swap(server.other(), "v2").json()))
        time.sleep(_A_MOMENT_S)  # nothing tells that a swap waits
        new = Asking(lambda: server.say(FREE_PROMPT))
        expect(not swapping.is_over() and not new.is_over(), "both to wait for the running one", "one ended")
        expect(swapping.answer()["success"], "success", swapping.answer())
        expect(old.is_over(), "the swap to be later than the answer", "it runs on")
        for asking, version in ((old, server.version), (new, "v2")):
            spans = asking.answer()["meta_info"]["weight_versions"]
            expect([span["version"] for span in spans] == [version], f"{version} alone", spans)


# --- pausing ----------------------------------------------------------------------------------------------


@check
def while_paused_it_is_not_ready_and_requests_hang(server: Contract) -> None:
    """And weights may be swapped at once."""
    with server.restored():
        for mode in ("in_place", "abort"):
            server.post("/pause_generation", {"mode": mode})
            expect(
                server.get("/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE, "503", "another status"
            )
            try:
                server.post("/generate", {"text": PROMPT}, timeout_s=_PATIENCE_S)
                raise ContractError("expected: a paused server does not answer; saw: it did")
            except httpx.TimeoutException:
                pass
            expect(server.swap(server.other(), "v2").json()["success"], "a swap while paused", "none")
            server.post("/continue_generation", {})
            expect(server.get("/ready").status_code == _OK, "200 again", "another status")
        expect(
            server.say(FREE_PROMPT)["meta_info"]["weight_version"] == "v2",
            "answers of the new ones",
            "others",
        )
