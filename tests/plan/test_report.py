"""From counts to times, verdicts and advice, by arithmetic on round numbers."""

import pytest

from iddpm_jax import config as configs
from iddpm_jax.plan import report
from iddpm_jax.plan.chips import GIB, topology

MEMORY = {"arguments": 2 * GIB, "results": 0, "temporaries": GIB, "code": 0}


def numbers(**changes: object) -> dict:
    """A program of 197 TFLOP that moves 819 GB, without collectives."""
    return {"flops": 197e12, "hbm_bytes": 819e9, "collectives": [], "memory": MEMORY, **changes}


def collective(kind: str, times: int = 1, group: int = 4) -> dict:
    return {"kind": kind, "bytes": 100e9, "group": group, "times": times}


def test_each_limit_takes_a_second_where_the_chip_has_just_that():
    # 100 GB/s leave a chip of 2x2 by its two links, and an all-reduce sends 2 x 3/4 of its bytes.
    found = report.roofline(numbers(collectives=[collective("all-reduce")]), topology("v5e:2x2"))
    assert found == pytest.approx({"arithmetic": 1.0, "memory": 1.0, "links": 1.5})


@pytest.mark.parametrize(
    "kind, seconds",
    [
        ("all-gather", 3.0),
        ("reduce-scatter", 0.75),
        ("all-to-all", 0.75),
        ("collective-permute", 1.0),
    ],
)
def test_collectives_send_their_share(kind, seconds):
    found = report.roofline(numbers(collectives=[collective(kind)]), topology("v5e:2x2"))
    assert found["links"] == pytest.approx(seconds)


def test_collectives_in_loops_and_of_all_devices_count_in_full():
    loop = [collective("all-reduce", times=3, group=0)]
    found = report.roofline(numbers(collectives=loop), topology("v5e:4x4"))
    assert found["links"] == pytest.approx(3 * 2 * 15 / 16 * 100e9 / 200e9)


def test_one_chip_has_no_links_to_wait_for():
    assert report.roofline(numbers(), topology("v5e:1x1"))["links"] == 0.0


def test_a_core_of_v4_has_half_a_chip():
    found = report.roofline(numbers(flops=275e12, hbm_bytes=1228e9), topology("v4:2x2x1"))
    assert found == pytest.approx({"arithmetic": 2.0, "memory": 2.0, "links": 0.0})
    assert report.capacity(topology("v4:2x2x1")) == 16 * GIB


def test_memory_is_the_sum_of_its_uses_or_what_the_compiler_says():
    slice_ = topology("v5e:2x2")
    assert report.needed(numbers()) == 3 * GIB
    assert report.fits(numbers(), slice_)
    assert not report.fits(numbers(memory={"temporaries": 17 * GIB}), slice_)
    refused = {"needed": 15.9 * GIB, "available": 15.75 * GIB}
    assert report.needed(refused) == 15.9 * GIB
    assert not report.fits(refused, slice_)


def advise(need: float, params: float = 0.5, state: float = 2, **changes: object) -> list[str]:
    config = configs.base()
    config.update_from_flattened_dict({"train.steps": 1, **changes})
    sizes = (int(size * GIB) for size in (need, params, state))
    return report.advice(config, topology("v5e:2x2"), *sizes)


def test_what_fits_needs_no_advice():
    assert advise(16) == []


def test_microbatches_come_first_and_stop_where_it_fits():
    # 40 GiB are 2 of state, 0.5 of gradient and 37.5 of activations; in m parts, 3 + 37.5 / m.
    lines = advise(40)
    assert lines[0] == "--config.train.microbatches=2: about 21.8 GiB, which is still too much"
    assert lines[1] == "--config.train.microbatches=4: about 12.4 GiB, which would fit"
    assert "--config.model.remat=blocks" in lines[2]


def test_microbatches_go_on_from_those_there_are():
    lines = advise(40, **{"train.microbatches": 8})
    assert lines[0].startswith("--config.train.microbatches=16: about 21.8 GiB")


def test_parts_of_one_image_and_remat_are_not_advised_again():
    lines = advise(40, **{"train.batch_size": 4, "model.remat": "blocks"})
    assert not any("microbatches" in line or "remat" in line for line in lines)


def test_sharing_the_state_helps_a_large_state():
    # 2 devices: 30 / 2 of state, 2 x 0.5 of parameters and gradient, 1 of activations.
    lines = advise(31.5, state=30, **{"train.batch_size": 4, "model.remat": "blocks"})
    assert lines[0] == "--config.train.fsdp=2: about 17.0 GiB, which is still too much"
    assert lines[1] == "--config.train.fsdp=4: about 9.5 GiB, which would fit"


@pytest.mark.parametrize(
    "value, text",
    [(0, "0 "), (12.0, "12 "), (1505.0, "1.5 k"), (1.539e12, "1.54 T"), (2.1e8, "210 M")],
)
def test_numbers_have_three_digits_and_a_prefix(value, text):
    assert report._number(value) == text
    assert report._rounded(16384.0) == 16400.0
