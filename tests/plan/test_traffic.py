"""The count by hand of what a step moves, on networks small enough to count on paper."""

from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.plan.traffic import KINDS, training_bytes

ONE_BLOCK = UNetSpec(
    width=32, channel_mult=(1,), num_res_blocks=1, attention_factors=(), num_heads=2
)
SHAPE = (8, 8, 3)

# Of one image: 64 pixels of 3, 6, 32 and 64 channels.
IMAGE, OUTPUT, A = 64 * 3, 64 * 6, 64 * 32


def test_parameters_are_moved_fourteen_times_with_one_average():
    # Forward, backward, the gradient; its sum read and written; by Adam the gradient read, and
    # parameters, two moments and the average read and written.
    assert training_bytes(ONE_BLOCK, SHAPE, 1, 1000, 1)["parameters"] == 4 * 14 * 1000
    assert training_bytes(ONE_BLOCK, SHAPE, 1, 1000, 2)["parameters"] == 4 * 16 * 1000


def test_activations_of_a_network_are_those_on_paper():
    found = training_bytes(ONE_BLOCK, SHAPE, 1, 0, 1)
    # The encoder's block and two in the middle read and write two convolutions and read their input
    # again: 5. Two in the decoder, of 2 A: join 4; 3, 2, sum 1, projection 3.
    assert found["forward"] == 4 * (IMAGE + A + 3 * 5 * A + 2 * 13 * A + A + OUTPUT)
    # A convolution of A behind a norm: 8, two in a block, and the sum's 1. In the decoder: part 4;
    # 14 and 8, the sum 2, projection 6.
    normed = 3 * 17 * A + 2 * 34 * A + 6 * A + 2 * OUTPUT
    assert found["backward"] == 4 * (2 * IMAGE + 2 * A + normed)
    # 11 A and 2 of two heads' 64 x 64 logits forward, 24 A and 7 of them backward.
    assert found["attention"] == 4 * (35 * A + 9 * 2 * 64**2)


def test_half_precision_halves_activations_and_images_multiply_them():
    whole, half = (
        training_bytes(UNetSpec(dtype=dtype), (32, 32, 3), images, 10, 1)
        for dtype, images in (("float32", 1), ("bfloat16", 4))
    )
    assert list(whole) == list(KINDS)
    assert all(half[kind] == 2 * whole[kind] for kind in KINDS[:3])
    assert half["parameters"] == whole["parameters"]
