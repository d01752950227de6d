"""Does a model fit: into the running server, into memory, onto the disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.host_metrics import Gpu
from rules.model_facts import ModelFacts
from rules.model_fit import disk_fault, memory_fault, swap_refusals
from tests.rules.models import TOKENIZER, llama, reshaped, sharded, without

GIB = 1 << 30
PATH = "/srv/model/current/model"
RUNNING = llama()


def refusals(new: ModelFacts, running: ModelFacts = RUNNING, **changed: object) -> tuple[str, ...]:
    asked = {"flags_differ": (), "served_name": PATH, "model_path": PATH, **changed}
    return swap_refusals(new, running, **asked)


def gpu(total_gib: float | None = 24, used_gib: float | None = 0, index: int = 0) -> Gpu:
    return Gpu(
        index=index,
        name="Lab",
        used_ratio=None,
        memory_total_bytes=None if total_gib is None else round(total_gib * GIB),
        memory_used_bytes=None if used_gib is None else round(used_gib * GIB),
    )


# --- hot swap --------------------------------------------------------------------------------------


def test_the_same_model_with_other_weights_may_be_swapped_hot():
    assert refusals(llama()) == ()


def test_neither_names_of_files_nor_where_a_configuration_comes_from_matter():
    new = sharded(llama(), ["a.safetensors", "b.safetensors"])
    config = {**new.config, "transformers_version": "5.1", "_name_or_path": "acme/emily"}
    assert refusals(new.model_copy(update={"config": config, "weights_bytes": 7})) == ()


def test_the_older_and_the_newer_name_of_the_type_are_one_key():
    older = llama(torch_dtype="bfloat16")
    assert refusals(llama(dtype="bfloat16"), older) == ()
    assert refusals(llama(dtype="float16"), older) == (
        "config.json differs in dtype, which is not read again",
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"architectures": ("Qwen2ForCausalLM",)},
            "architecture is Qwen2ForCausalLM, the running one's Llama",
        ),
        ({"format": "gguf"}, "a server swaps safetensors only"),
        ({"quantization": "fp8"}, "quantized weights (fp8, running none)"),
        ({"config": {**RUNNING.config, "rope_theta": 5e5}}, "config.json differs in rope_theta"),
        ({"generation": {"temperature": 0.6}}, "generation_config.json differs in temperature"),
        ({"files": {"tokenizer.json": "d" * 64}}, "tokenizer.json differs"),
        ({"files": {**RUNNING.files, "chat_template.jinja": "d" * 64}}, "chat_template.jinja differs"),
        ({"tokenizer": TOKENIZER.model_copy(update={"sha256": "d" * 64})}, "the tokenizer differs"),
    ],
)
def test_what_a_server_does_not_read_again_must_be_the_same(changed, expected):
    other = RUNNING.model_copy(update=changed)
    (refusal,) = refusals(other, RUNNING)
    assert expected in refusal
    assert len(refusals(RUNNING, other)) == 1


def test_two_quantized_models_are_refused_even_when_they_are_alike():
    packed = RUNNING.model_copy(update={"quantization": "awq"})
    (refusal,) = refusals(packed, packed)
    assert "cannot be loaded over" in refusal


@given(data=st.data())
def test_any_difference_between_the_tensors_is_refused_by_name(data):
    name = data.draw(st.sampled_from(sorted(RUNNING.tensors)))
    tensor = RUNNING.tensors[name]
    assert any(
        f"missing ({name})" in refusal and "its own would stay" in refusal
        for refusal in refusals(without(RUNNING, name))
    )
    assert any(
        f"not in the running model ({name})" in one for one in refusals(RUNNING, without(RUNNING, name))
    )
    shape = (tensor.shape[0] + 1, *tensor.shape[1:])
    (refusal,) = refusals(reshaped(RUNNING, name, shape))
    assert f"such as {name}: BF16 {list(shape)}, running BF16 {list(tensor.shape)}" in refusal
    wider = {**RUNNING.tensors, name: tensor.model_copy(update={"dtype": "F32"})}
    (refusal,) = refusals(RUNNING.model_copy(update={"tensors": wider}))
    assert f"such as {name}: F32" in refusal


def test_flags_are_read_only_when_a_server_starts():
    (refusal,) = refusals(llama(), flags_differ=("context-length", "tp-size"))
    assert "flags differ in context-length, tp-size" in refusal


def test_a_name_that_users_ask_for_must_not_change():
    (refusal,) = refusals(llama(), served_name="emily")
    assert refusal == f"the served name would change from emily to {PATH}"


def test_every_reason_is_said():
    new = llama(hidden_size=128).model_copy(update={"quantization": "fp8"})
    assert len(refusals(new, flags_differ=("dtype",), served_name="emily")) == 5


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need_gib", "used_gib", "freed_gib", "fits"),
    [
        (20, 0, 0, True),  # 20 x 1.2 = 24: exactly
        (20.01, 0, 0, False),
        (10, 13, 0, False),  # 12 needed, 11 there
        (10, 13, 1, True),
        (10, 13, 99, True),
        (25, 1, 99, False),  # no more is given back than is in use
    ],
)
def test_a_gpu_needs_the_weights_and_a_reserve(need_gib, used_gib, freed_gib, fits):
    fault = memory_fault(
        round(need_gib * GIB), (gpu(24, used_gib),), freed_bytes=freed_gib * GIB, reserve_ratio=1.2
    )
    assert (fault is None) is fits


def test_the_arithmetic_is_said():
    assert memory_fault(20 * GIB, (gpu(24, 10),), freed_bytes=2 * GIB, reserve_ratio=1.5) == (
        "GPU 0 (Lab, 24.00 GiB): 30.00 GiB needed (20.00 GiB x 1.5), 16.00 GiB there: 14.00 GiB free and "
        "2.00 GiB given back before"
    )


def test_several_gpus_share_a_model_and_each_must_hold_its_part():
    four = tuple(gpu(24, 0, index) for index in range(4))
    assert memory_fault(96 * GIB, four, freed_bytes=0, reserve_ratio=1.0) is None
    full = (*four[:3], gpu(24, 5, 3))
    fault = memory_fault(80 * GIB, full, freed_bytes=0, reserve_ratio=1.0)
    assert fault is not None
    assert fault.startswith("GPU 3 (Lab, 24.00 GiB), one of 4 that share 80.00 GiB: 20.00 GiB needed")
    assert memory_fault(80 * GIB, full, freed_bytes=8 * GIB, reserve_ratio=1.0) is None  # 2 GiB each
    both = (gpu(24, 20, 0), gpu(24, 20, 1))
    assert "; GPU 1" in (memory_fault(80 * GIB, both, freed_bytes=0, reserve_ratio=1.0) or "")


@pytest.mark.parametrize("gpus", [(), (gpu(None, None),), (gpu(24, None),), (gpu(), gpu(None))])
def test_without_memory_of_a_gpu_it_is_the_hosts_that_counts(gpus):
    def fault(ram_bytes: int | None) -> str:
        found = memory_fault(10 * GIB, gpus, freed_bytes=GIB, reserve_ratio=1.2, ram_bytes=ram_bytes)
        return found or ""

    assert fault(11 * GIB) == ""
    assert "11.00 GiB there: 10.00 GiB free and 1.00 GiB given back" in fault(10 * GIB)
    assert "cannot be told" in fault(None)


# --- disk and growth -------------------------------------------------------------------------------


def test_a_disk_needs_the_files_and_a_reserve():
    assert disk_fault(10 * GIB, free_bytes=11 * GIB, reserve_ratio=1.1, place="/srv") is None
    fault = disk_fault(10 * GIB, free_bytes=11 * GIB - 1, reserve_ratio=1.1, place="/srv")
    assert fault is not None
    assert fault.startswith("the disk of /srv: 11.00 GiB needed (10.00 GiB x 1.1)")
