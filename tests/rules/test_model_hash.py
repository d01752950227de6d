"""The checksum of GPUs, against what SGLang's own kernel gave (Triton's interpreter, 0.5.23)."""

from __future__ import annotations

import random

import pytest

from rules.model_hash import gpu_checksum

# random.Random(7).randbytes, one after the other
FROM_THE_KERNEL = {
    2: "ebe22dab06c26303",
    4: "5667fedaa75169c9",
    6: "b2acc0cfe158e6f1",
    128: "9ca9cd9fc09f793b",
    1000: "db82052c49e25200",
    8192: "73a8c069d8f1e160",
    32768: "6b68a882fcc7bf44",
    32770: "1491c23cf6ee7d54",
    100000: "643fa50b213c819b",
}


def test_it_is_what_the_kernel_computes():
    chance = random.Random(7)
    assert {size: gpu_checksum(chance.randbytes(size)) for size in FROM_THE_KERNEL} == FROM_THE_KERNEL


def test_nothing_has_the_checksum_zero():
    assert gpu_checksum(b"") == "0" * 16


@pytest.mark.parametrize("at", [0, 1, 2, 99])
def test_one_changed_byte_changes_it(at):
    data = bytearray(random.Random(1).randbytes(100))
    before = gpu_checksum(bytes(data))
    data[at] ^= 1
    assert gpu_checksum(bytes(data)) != before
