"""In-painting: a loop in float64, and two correlated pixels of which one is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.diffusion.inpainting import inpaint
from iddpm_jax.diffusion.process import make_process
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.samplers import ancestral, noise_per_sample
from iddpm_jax.diffusion.schedules import make_betas

SHAPE = (2, 4, 4, 3)
BETAS = make_betas("cosine", 400)
PROCESS = respace(BETAS, "5")
LEARNED = Parametrization("eps", "learned_range")
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, SHAPE).astype(np.float32)
X = RNG.standard_normal(SHAPE).astype(np.float32)
MASKS = {
    "one channel": RNG.integers(0, 2, (*SHAPE[:-1], 1)).astype(np.float32),
    "every channel": RNG.integers(0, 2, SHAPE).astype(np.float32),
    "fractions": RNG.uniform(0, 1, SHAPE).astype(np.float32),
}
NOISE = noise_per_sample(jax.random.split(jax.random.key(0), SHAPE[0]), SHAPE[1:])


def _output(sin, concatenate, x, tau):
    return concatenate([0.9 * x + 0.3 * sin(2 * x) + tau, sin(3 * x) - 0.2 * tau], -1)


def _network(x: jax.Array, model_t: jax.Array) -> jax.Array:
    return _output(jnp.sin, jnp.concatenate, x, model_t[:, None, None, None] / 400)


_inpaint = jax.jit(
    lambda process, image, mask, x, noise, repeats: inpaint(
        _network, process, LEARNED, image, mask, x, lambda i: noise[i], repeats=repeats, frames=5
    )
)


def _loop(mask, noise, repeats: int):
    """Lugmayr et al. 2022, algorithm 1 in float64: x_{t-1} and x_0 after each step."""
    alpha_bar = np.cumprod(1 - BETAS)[PROCESS.timesteps]
    prev, T = np.append(1.0, alpha_bar[:-1]), len(alpha_bar)
    beta = 1 - alpha_bar / prev
    beta_tilde = beta * (1 - prev) / (1 - alpha_bar)
    log_small = np.log(np.append(beta_tilde[1], beta_tilde[1:]))
    x, every = X.astype(np.float64), []
    for t in reversed(range(T)):
        a, b = alpha_bar[t], prev[t]
        for r in range(repeats if t > 0 else 1):
            if r > 0:
                eps = noise[(T + 1) * (3 * (r - 1) + 2) + t]
                x = np.sqrt(1 - beta[t]) * x + np.sqrt(beta[t]) * eps
            output = _output(np.sin, np.concatenate, x, PROCESS.timesteps[t] / 400)
            eps, v = np.split(output, 2, axis=-1)
            x_0 = np.clip((x - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
            mean = np.sqrt(b) * beta[t] * x_0 + np.sqrt(1 - beta[t]) * (1 - b) * x
            std = np.exp((v + 1) / 4 * np.log(beta[t]) + (1 - v) / 4 * log_small[t]) * (t > 0)
            unknown = mean / (1 - a) + std * noise[(T + 1) * 3 * r + t]
            known = np.sqrt(b) * IMAGE + np.sqrt(1 - b) * noise[(T + 1) * (3 * r + 1) + t]
            x = mask * known + (1 - mask) * unknown
        every.append((x, x_0))
    return [np.stack(arrays) for arrays in zip(*every, strict=True)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_step_matches_a_loop_in_float64(mask, repeats):
    noise = np.random.default_rng(1).standard_normal((6 * 9, *SHAPE)).astype(np.float32)
    samples = _inpaint(PROCESS, IMAGE, mask, X, noise, repeats)
    x_frames, x_0_frames = _loop(mask, noise, repeats)
    np.testing.assert_allclose(samples.x_frames, x_frames, atol=1e-4)
    np.testing.assert_allclose(samples.x_0_frames, x_0_frames, atol=1e-4)


@pytest.mark.parametrize("repeats", [1, 2])
def test_known_part_is_exact_and_the_rest_of_the_image_does_not_matter(repeats):
    mask = MASKS["one channel"]
    options = {"mask": mask, "x": X, "noise": NOISE, "repeats": repeats}
    samples = inpaint(_network, PROCESS, LEARNED, IMAGE, **options)
    is_known = np.broadcast_to(mask == 1, SHAPE)
    np.testing.assert_array_equal(np.asarray(samples.x)[is_known], IMAGE[is_known])
    other = inpaint(_network, PROCESS, LEARNED, np.where(is_known, IMAGE, 0.7), **options)
    np.testing.assert_array_equal(other.x, samples.x)


def test_mask_of_ones_returns_the_image():
    mask = np.ones((*SHAPE[:-1], 1), bool)
    samples = inpaint(_network, PROCESS, LEARNED, IMAGE, mask, X, NOISE, repeats=2)
    np.testing.assert_array_equal(samples.x, IMAGE)


def test_mask_of_zeros_is_ancestral_sampling():
    mask = np.zeros(SHAPE, np.float32)
    samples = inpaint(_network, PROCESS, LEARNED, IMAGE, mask, X, NOISE, frames=5)
    expected = ancestral(_network, PROCESS, LEARNED, X, NOISE, frames=5)
    np.testing.assert_allclose(samples.x_frames, expected.x_frames, atol=1e-6)
    np.testing.assert_allclose(samples.x_0_frames, expected.x_0_frames, atol=1e-6)


def test_every_draw_has_its_own_index_and_none_is_that_of_the_start():
    indices = []

    def noise(index):
        indices.append(int(index))
        return X

    process = make_process(make_betas("linear", 40)[:3])
    with jax.disable_jit():
        inpaint(_network, process, LEARNED, IMAGE, MASKS["one channel"], X, noise, repeats=3)
    assert len(indices) == len(set(indices)) == 3 * (3 + 3 + 1)
    assert process.T not in indices and min(indices) >= 0


# Two pixels, x_0 ~ N(0, [[1, RHO], [RHO, 1]]), of which the first is known. The best eps is linear
# in x_t, so in-painting is a linear recursion with normal noise.
RHO, KNOWN, COUNT = 0.8, 1.0, 4000


def _best_eps(alpha_bar):
    """Matrix of E[eps | x_t], [..., 2, 2]; float64."""
    eye, a = np.eye(2), np.asarray(alpha_bar)[..., None, None]
    return np.sqrt(1 - a) * np.linalg.inv(a * np.array([[1, RHO], [RHO, 1]]) + (1 - a) * eye)


def _moments(timesteps: np.ndarray, repeats: int) -> tuple[float, float]:
    """Mean and variance of the unknown pixel that the recursion ends with; float64."""
    alpha_bar = np.cumprod(1 - BETAS)[timesteps]
    prev = np.append(1.0, alpha_bar[:-1])
    mean, covariance, eye = np.zeros(2), np.eye(2), np.eye(2)
    unknown, known = np.diag([0.0, 1.0]), np.diag([1.0, 0.0])
    for t in reversed(range(len(alpha_bar))):
        a, b = alpha_bar[t], prev[t]
        beta = 1 - a / b
        # Ho et al. 2020, equation 11, for the unknown pixel.
        A = unknown @ (eye - beta / np.sqrt(1 - a) * _best_eps(a)) / np.sqrt(1 - beta)
        for r in range(repeats if t > 0 else 1):
            if r > 0:
                mean = np.sqrt(1 - beta) * mean
                covariance = (1 - beta) * covariance + beta * eye
            mean = A @ mean + known @ np.full(2, np.sqrt(b) * KNOWN)
            covariance = A @ covariance @ A.T + beta * (t > 0) * unknown + (1 - b) * known
    return mean[1], covariance[1, 1]


def test_repeats_lead_to_the_conditional_distribution():
    process = respace(BETAS, "20")
    eps_of = np.zeros((400, 2, 2), np.float32)
    eps_of[process.timesteps] = _best_eps(np.cumprod(1 - BETAS)[process.timesteps])

    def network(x, model_t):
        return jnp.einsum("bij,bhjc->bhic", jnp.asarray(eps_of)[model_t], x)

    key, shape = jax.random.key(0), (COUNT, 1, 2, 1)

    def noise(index):
        return jax.random.normal(jax.random.fold_in(key, index), shape)

    image = jnp.full(shape, KNOWN)
    mask = jnp.zeros(shape).at[:, :, 0].set(1.0)
    sample = jax.jit(
        lambda repeats: inpaint(
            network,
            process,
            Parametrization("eps", "fixed_large"),
            image,
            mask,
            noise(process.T),
            noise,
            repeats=repeats,
            transform=None,
        )
    )
    distance = []
    for repeats in (1, 10):
        pixel = np.asarray(sample(repeats).x[:, 0, 1, 0], np.float64)
        mean, variance = _moments(process.timesteps, repeats)
        np.testing.assert_allclose(pixel.mean(), mean, atol=4 * np.sqrt(variance / COUNT))
        np.testing.assert_allclose(pixel.var(), variance, rtol=4 * np.sqrt(2 / COUNT))
        distance.append([abs(pixel.mean() - RHO * KNOWN), abs(pixel.var() - (1 - RHO**2))])
    # Known: x_0 of the second pixel given the first is N(RHO KNOWN, 1 - RHO^2).
    assert np.all(np.array(distance[0]) > [0.25, 0.12])
    assert np.all(np.array(distance[1]) < [0.09, 0.08])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": IMAGE[:1]}, "image has shape"),
        ({"mask": np.ones(SHAPE[1:3], np.float32)}, "mask has shape"),
        ({"mask": np.ones((*SHAPE[:-1], 2), np.float32)}, "mask has shape"),
        ({"repeats": 0}, "repeats is 0; use 1 or more"),
    ],
)
def test_impossible_arguments_are_refused(wrong, message):
    arguments = {"image": IMAGE, "mask": MASKS["every channel"], "x": X, "noise": NOISE, **wrong}
    with pytest.raises(ValueError, match=message):
        inpaint(_network, PROCESS, LEARNED, **arguments)
