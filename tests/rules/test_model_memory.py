"""How much of the GPUs' memory may be in use once a new release serves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.host_metrics import Gpu
from rules.model_memory import claimed_ratio, freed_bytes, gpus_of, memory_limits
from rules.serving import ServingLimits

GB = 10**9
LIMITS = ServingLimits(max_memory_growth_ratio=0.1)


def gpu(index: int = 0, *, used: int | None = 20 * GB, total: int | None = 80 * GB) -> Gpu:
    return Gpu(index=index, name="Lab", used_ratio=None, memory_used_bytes=used, memory_total_bytes=total)


def most(gpus, flags=None, *, more: int | None = 0) -> list[int]:
    return [one.most_bytes for one in memory_limits(gpus, flags or {}, LIMITS, more_weights_bytes=more)]


def test_a_server_that_runs_may_use_what_it_uses_and_the_growth():
    (limit,) = memory_limits([gpu()], {}, LIMITS, more_weights_bytes=0)
    assert (limit.gpu, limit.most_bytes) == (0, 28 * GB)
    assert limit.words == "20,000,000,000 in use now; 0.1 of 80,000,000,000 on top"


def test_larger_weights_are_expected_and_smaller_ones_give_nothing_away():
    assert most([gpu()], more=10 * GB) == [38 * GB]
    assert most([gpu()], more=-10 * GB) == [28 * GB]
    assert most([gpu(0), gpu(1)], more=10 * GB) == [33 * GB, 33 * GB]  # an equal part for each


def test_flags_that_claim_more_than_those_that_run_are_expected_to():
    half, most_of_it = {"mem-fraction-static": 0.5}, {"mem-fraction-static": 0.75}

    def limit(new, old):
        return memory_limits([gpu()], new, LIMITS, more_weights_bytes=0, running_flags=old)[0]

    assert limit(most_of_it, half).most_bytes == (20 + 20 + 8) * GB
    assert "20,000,000,000 more by mem-fraction-static" in limit(most_of_it, half).words
    assert limit(half, most_of_it).most_bytes == 28 * GB
    assert limit(half, half).most_bytes == 28 * GB


def test_a_server_that_does_not_run_will_claim_its_share_of_what_is_free():
    assert most([gpu()], {"mem-fraction-static": 0.5}, more=None) == [(20 + 30 + 8) * GB]
    assert most([gpu(used=0)], {"mem-fraction-static": 0.5}, more=None) == [48 * GB]
    # nothing declared: SGLang takes nearly all, so only a GPU that is full speaks
    assert most([gpu()], more=None) == [80 * GB]


def test_a_gpu_that_does_not_say_has_no_limit_and_none_has_none():
    assert most([gpu(used=None), gpu(1)]) == [28 * GB]
    assert most([gpu(total=None)]) == []
    assert most([]) == []


def test_only_its_own_gpus_count_and_none_on_the_cpu():
    gpus = [gpu(0), gpu(1), gpu(2)]
    assert [one.index for one in gpus_of((0, 2), gpus, {})] == [0, 2]
    assert [one.index for one in gpus_of((), gpus, {"device": "cuda"})] == [0, 1, 2]
    assert gpus_of((0,), gpus, {"device": "cpu"}) == ()


@pytest.mark.parametrize(
    ("declared", "ratio"),
    [(0.5, 0.5), (1, 1.0), (None, 0.9), (True, 0.9), ("half", 0.9), (0, 0.9), (7.0, 0.9)],
)
def test_what_is_claimed_is_the_flag_where_it_is_a_share(declared, ratio):
    assert claimed_ratio({} if declared is None else {"mem-fraction-static": declared}) == ratio


def test_a_server_gives_back_at_most_what_it_claimed_and_what_is_in_use():
    assert freed_bytes([gpu(), gpu(1, used=70 * GB)], {"mem-fraction-static": 0.5}) == (20 + 40) * GB
    assert freed_bytes([gpu(used=None)], {}) == 0


@given(st.integers(0, 80 * GB), st.one_of(st.none(), st.integers(-80 * GB, 80 * GB)), st.floats(0.01, 1))
def test_a_limit_is_never_above_the_gpu_and_never_below_what_is_in_use(used, more, fraction):
    (limit,) = most([gpu(used=used)], {"mem-fraction-static": fraction}, more=more)
    assert used <= limit <= 80 * GB
