"""Samplers: recorded runs, data with a known best network, and what compiles how often."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAMPLER, assert_close, cases, load, to_nchw
from toy_model import images, parametrization_of, process_of, toy_network, transform_of

from iddpm_jax.diffusion.process import Process, make_process
from iddpm_jax.diffusion.respacing import padded, respace
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.samplers import (
    Network,
    ancestral,
    ddim,
    ddim_inversion,
    noise_per_sample,
)
from iddpm_jax.diffusion.schedules import make_betas

FILE = "05_samplers.npz"
CASES = cases(FILE)


def _run(name: str, case: dict, frames: int, steps: int | None = None):
    network = toy_network(case, case["spec"])
    process, parametrization = process_of(case["spec"]), parametrization_of(case)
    x = images(FILE, f"{name}/x_first")
    options = {"transform": transform_of(case), "frames": frames, "steps": steps}
    if case["kind"] == "ddim_reverse":
        return ddim_inversion(network, process, parametrization, x, **options)
    recorded = images(FILE, f"{name}/step_noise")

    def noise(t: jax.Array) -> jax.Array:
        return recorded[process.T - 1 - t]

    if case["kind"] == "ddim":
        options["eta"] = case["eta"]
    sampler = {"p": ancestral, "ddim": ddim}[case["kind"]]
    return sampler(network, process, parametrization, x, noise, **options)


@pytest.mark.parametrize("name, case", CASES, ids=[name for name, _ in CASES])
def test_every_step_matches_recording(name, case):
    samples = _run(name, case, frames=case["steps"])
    assert_close(FILE, f"{name}/samples", to_nchw(samples.x_frames), SAMPLER)
    assert_close(FILE, f"{name}/pred_xstart", to_nchw(samples.x_0_frames), SAMPLER)
    np.testing.assert_array_equal(samples.x, samples.x_frames[-1])
    np.testing.assert_array_equal(samples.x_0, samples.x_0_frames[-1])


@pytest.mark.parametrize("kind", ["p", "ddim", "ddim_reverse"])
def test_frames_are_spread_evenly_and_end_at_the_last_step(kind):
    name, case = cases(FILE, kind)[0]
    every = load(FILE)[f"{name}/samples"]
    steps = len(every)
    frames = 5
    samples = _run(name, case, frames)
    assert samples.x_frames.shape[0] == frames
    # Frame f shows the last of the steps i with floor(i frames / steps) = f.
    last = [max(i for i in range(steps) if i * frames // steps == f) for f in range(frames)]
    assert last[-1] == steps - 1
    np.testing.assert_allclose(to_nchw(samples.x_frames), every[last], atol=1e-4)
    bare = _run(name, case, frames=0)
    assert bare.x_frames.shape[0] == 0
    np.testing.assert_allclose(to_nchw(bare.x), every[-1], atol=1e-4)


@pytest.mark.parametrize("kind", ["p", "ddim", "ddim_reverse"])
def test_fewer_steps_run_the_end_of_the_process(kind):
    """Starting from the recorded x after some steps gives the recorded end."""
    name, case = cases(FILE, kind)[0]
    every = load(FILE)[f"{name}/samples"]
    T = len(every)
    network = toy_network(case, case["spec"])
    process, parametrization = process_of(case["spec"]), parametrization_of(case)
    transform = transform_of(case)
    if kind == "ddim_reverse":
        x = images(FILE, f"{name}/x_first")
        samples = ddim_inversion(network, process, parametrization, x, steps=4, transform=transform)
        np.testing.assert_allclose(to_nchw(samples.x), every[3], atol=1e-4)
        return
    recorded = images(FILE, f"{name}/step_noise")
    sampler = {"p": ancestral, "ddim": functools.partial(ddim, eta=case["eta"])}[kind]
    samples = sampler(
        network,
        process,
        parametrization,
        jnp.asarray(np.moveaxis(every[T - 5], -3, -1)),
        lambda t: recorded[T - 1 - t],
        steps=4,
        transform=transform,
    )
    np.testing.assert_allclose(to_nchw(samples.x), every[-1], atol=1e-4)


# Pixels are independent, N(MEAN, STD^2). Then x_t is normal too and the best prediction of the
# noise is E[eps | x_t] = sqrt(1 - abar) (x_t - sqrt(abar) m) / (abar s^2 + 1 - abar), and
# p(x_{t-1} | x_t) is exactly normal with variance
# beta_tilde + posterior_x_0^2 Var[x_0 | x_t].
MEAN, STD = 0.3, 0.5
BETAS = make_betas("cosine", 1000)
SHAPE = (64, 32, 32, 1)
COUNT = int(np.prod(SHAPE))


def _best_network(x: jax.Array, model_t: jax.Array) -> jax.Array:
    """E[eps | x_t], looked up by the time of the original process."""
    alpha_bar = jnp.asarray(np.cumprod(1 - BETAS), jnp.float32)[model_t][:, None, None, None]
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    return jnp.sqrt(1 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * MEAN) / variance


def _best_log_variance(steps: np.ndarray) -> np.ndarray:
    """Log-variance of p(x_{t-1} | x_t), by step of the respaced process."""
    alpha_bar = np.cumprod(1 - BETAS)[steps]
    prev = np.append(1.0, alpha_bar[:-1])
    of_x_0 = np.sqrt(prev) * (1 - alpha_bar / prev) / (1 - alpha_bar)
    x_0_variance = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    beta_tilde = (1 - alpha_bar / prev) * (1 - prev) / (1 - alpha_bar)
    return np.log(beta_tilde + of_x_0**2 * x_0_variance)


def _moments(steps: np.ndarray, sigma2: Callable, ddim_mean: bool) -> tuple[float, float]:
    """Mean and variance that a sampler ends with, starting from a standard normal; float64.

    Every step is linear in x_t: its mean is that of Ho et al. 2020, equation 11, or of DDIM,
    equation 12, both with the best eps; sigma2(beta, beta_tilde) is what it adds.
    """
    alpha_bar = np.cumprod(1 - BETAS)[steps]
    prev = np.append(1.0, alpha_bar[:-1])
    mean, variance = 0.0, 1.0
    for a, b in zip(alpha_bar[::-1], prev[::-1], strict=True):
        beta, eps_slope = 1 - a / b, np.sqrt(1 - a) / (a * STD**2 + 1 - a)
        added = sigma2(beta, beta * (1 - b) / (1 - a)) if b < 1 else 0.0

        def step(x, a=a, b=b, beta=beta, eps_slope=eps_slope, added=added):
            eps = eps_slope * (x - np.sqrt(a) * MEAN)
            if ddim_mean:
                x_0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
                return np.sqrt(b) * x_0 + np.sqrt(1 - b - added) * eps
            return (x - beta / np.sqrt(1 - a) * eps) / np.sqrt(1 - beta)

        slope = step(1.0) - step(0.0)
        mean, variance = step(mean), slope**2 * variance + added
    return mean, variance


def _assert_moments(x: jax.Array, mean: float, variance: float) -> None:
    """Within 4 standard errors of independent pixels."""
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(x.mean(), mean, atol=4 * np.sqrt(variance / x.size) + 1e-4)
    np.testing.assert_allclose(x.var(), variance, rtol=4 * np.sqrt(2 / x.size) + 1e-4)


def _keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def _start_and_noise(process: Process):
    noise = noise_per_sample(_keys(SHAPE[0]), SHAPE[1:])
    return noise(jnp.int32(process.T)), noise


@pytest.mark.parametrize("steps", [8, 100])
def test_ancestral_with_the_best_variance_is_exact_in_any_number_of_steps(steps):
    process = respace(BETAS, str(steps))
    table = jnp.zeros(1000).at[process.timesteps].set(_best_log_variance(process.timesteps))

    def network(x, model_t):
        v = jnp.broadcast_to(table[model_t][:, None, None, None], x.shape)
        return jnp.concatenate([_best_network(x, model_t), v], axis=-1)

    x, noise = _start_and_noise(process)
    sample = jax.jit(
        lambda process, x: ancestral(
            network, process, Parametrization("eps", "learned"), x, noise, transform=None
        )
    )
    _assert_moments(sample(process, x).x, MEAN, STD**2)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_with_fixed_variance_returns_the_data(variance):
    process = respace(BETAS, "100")
    x, noise = _start_and_noise(process)
    sample = jax.jit(
        lambda process, x: ancestral(
            _best_network, process, Parametrization("eps", variance), x, noise, transform=None
        )
    )
    sigma2 = {"fixed_small": lambda b, tilde: tilde, "fixed_large": lambda b, tilde: b}[variance]
    expected = _moments(process.timesteps, sigma2, ddim_mean=False)
    _assert_moments(sample(process, x).x, *expected)
    # A hundred steps leave a bias of a few per cent.
    np.testing.assert_allclose(expected, [MEAN, STD**2], rtol=0.09)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_fixed_variance_in_place_of_a_learned_one_is_that_of_a_model_with_it(variance):
    """The mean's part is the same; a learned variance of e^4 would be seen."""
    process = respace(BETAS, "20")

    def learned(x, model_t):
        return jnp.concatenate([_best_network(x, model_t), jnp.full_like(x, 4.0)], axis=-1)

    x, noise = _start_and_noise(process)
    arguments = (x[:2], lambda t: noise(t)[:2])
    got = ancestral(
        learned, process, Parametrization("eps", "learned"), *arguments, variance=variance
    )
    own = ancestral(_best_network, process, Parametrization("eps", variance), *arguments)
    np.testing.assert_allclose(got.x, own.x, atol=1e-5)


_ddim = jax.jit(
    lambda process, x, eta: (
        ddim(
            _best_network,
            process,
            Parametrization("eps", "fixed_small"),
            x,
            noise_per_sample(_keys(SHAPE[0]), SHAPE[1:]),
            eta=eta,
            transform=None,
        ).x
    )
)


@pytest.mark.parametrize("steps", [5, 100])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_returns_the_data(eta, steps):
    process = respace(BETAS, str(steps))
    x, _ = _start_and_noise(process)
    expected = _moments(process.timesteps, lambda b, tilde: eta**2 * tilde, ddim_mean=True)
    _assert_moments(_ddim(process, x, eta), *expected)
    if steps == 100:
        np.testing.assert_allclose(expected, [MEAN, STD**2], rtol=0.09)


def test_ddim_transports_each_sample_by_its_quantile():
    """With eta = 0 and many steps, x_T goes to the same quantile of the data."""
    process = respace(BETAS, "100")
    x, _ = _start_and_noise(process)
    expected = MEAN + STD * np.asarray(x)
    np.testing.assert_allclose(_ddim(process, x, 0.0), expected, rtol=0, atol=0.05)


def test_ddim_with_eta_one_takes_the_ancestral_step():
    """On the same noise: sigma^2 is beta_tilde, and both means are mu_tilde of the x_0."""
    process = respace(BETAS, "20")
    x, noise = _start_and_noise(process)
    options = {"transform": None, "frames": 20}
    parametrization = Parametrization("eps", "fixed_small")
    a = ancestral(_best_network, process, parametrization, x[:2], lambda t: noise(t)[:2], **options)
    b = ddim(
        _best_network, process, parametrization, x[:2], lambda t: noise(t)[:2], eta=1.0, **options
    )
    # Step 1 takes beta_tilde of step 1 in both; step 0 adds nothing in either.
    np.testing.assert_allclose(a.x_frames, b.x_frames, atol=5e-4)


def test_inversion_then_ddim_returns_to_the_start_at_first_order():
    parametrization = Parametrization("eps", "fixed_small")
    x = jnp.asarray(MEAN + STD * np.linspace(-2, 2, 16).reshape(1, 4, 4, 1), jnp.float32)

    @jax.jit
    def there_and_back(process):
        z = ddim_inversion(_best_network, process, parametrization, x, transform=None).x
        back = ddim(_best_network, process, parametrization, z, jnp.zeros_like, transform=None).x
        return z, back

    errors = []
    for steps in (25, 50, 100):
        z, back = there_and_back(respace(BETAS, str(steps)))
        errors.append(float(jnp.abs(back - x).max()))
    assert errors[-1] < 0.05
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    # The noise it finds is the sample's place in the data, in standard deviations.
    np.testing.assert_allclose(z, (x - MEAN) / STD, atol=0.1)


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_guidance_by_a_classifier_returns_the_posterior(sampler):
    """y ~ N(x_0, S^2) is known, so x_0 | y is normal with the sum of both precisions."""
    S, y = 0.4, -0.7
    precision = STD**-2 + S**-2
    expected, std = (MEAN * STD**-2 + y * S**-2) / precision, precision**-0.5

    def cond_fn(x, model_t):
        """y | x_t is N(E[x_0 | x_t], Var[x_0 | x_t] + S^2)."""
        a = jnp.asarray(np.cumprod(1 - BETAS), jnp.float32)[model_t][:, None, None, None]
        slope = jnp.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        x_0_variance = STD**2 * (1 - a) / (a * STD**2 + 1 - a)
        return slope * (y - MEAN - slope * (x - jnp.sqrt(a) * MEAN)) / (x_0_variance + S**2)

    process, noise = respace(BETAS, "100"), noise_per_sample(_keys(8), SHAPE[1:])
    x = noise(jnp.int32(process.T))
    options = {"transform": None, "cond_fn": cond_fn}
    parametrization = Parametrization("eps", "fixed_large")
    samples = np.asarray(sampler(_best_network, process, parametrization, x, noise, **options).x)
    if sampler is ddim:
        np.testing.assert_allclose(samples, expected + std * x, atol=0.03)
    np.testing.assert_allclose([samples.mean(), samples.std()], [expected, std], atol=0.015)


def _counted(network: Network) -> tuple[Network, list[int]]:
    traces = []

    def counted(x, model_t):
        traces.append(x.shape[0])
        return network(x, model_t)

    return counted, traces


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "ddim_inversion"])
def test_values_of_process_eta_and_steps_do_not_compile_again(sampler):
    network, traces = _counted(_best_network)
    parametrization = Parametrization("eps", "fixed_large")

    @jax.jit
    def sample(process, x, key, eta, steps):
        noise = noise_per_sample(jax.random.split(key, 2), x.shape[1:])
        if sampler == "ddim_inversion":
            return ddim_inversion(network, process, parametrization, x, steps=steps, frames=2).x
        if sampler == "ddim":
            return ddim(network, process, parametrization, x, noise, eta=eta, steps=steps).x
        return ancestral(network, process, parametrization, x, noise, steps=steps, frames=3).x

    x = jnp.ones((2, 3, 3, 1))
    first = sample(respace(BETAS, "10"), x, jax.random.key(0), 0.0, 10)
    once = len(traces)
    assert 1 <= once <= 2
    other = [
        sample(respace(BETAS, "ddim10"), x, jax.random.key(0), 0.0, 10),
        sample(respace(BETAS, "5,5"), x, jax.random.key(0), 0.0, 10),
        sample(make_process(make_betas("cosine", 10)), x, jax.random.key(0), 0.0, 10),
        sample(respace(BETAS, "10"), x, jax.random.key(0), 0.0, 4),
    ]
    if sampler == "ddim":
        other.append(sample(respace(BETAS, "10"), x, jax.random.key(0), 1.0, 10))
    if sampler != "ddim_inversion":
        other.append(sample(respace(BETAS, "10"), x + 1, jax.random.key(1), 0.5, 10))
    assert len(traces) == once and sample._cache_size() == 1
    for result in other:
        assert not np.allclose(result, first, atol=1e-6)


@pytest.mark.parametrize("sampler", [ancestral, functools.partial(ddim, eta=1.0)])
def test_sample_does_not_depend_on_the_batch_around_it(sampler):
    process = respace(BETAS, "6")
    keys = _keys(5)

    def run(keys):
        noise = noise_per_sample(keys, (4, 4, 1))
        x = noise(jnp.int32(process.T))
        return np.asarray(
            sampler(_best_network, process, Parametrization("eps", "fixed_small"), x, noise).x
        )

    together = run(keys)
    np.testing.assert_allclose(run(keys[:2]), together[:2], atol=1e-6)
    np.testing.assert_allclose(run(keys[3:4]), together[3:4], atol=1e-6)
    np.testing.assert_allclose(run(keys[::-1]), together[::-1], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_noise_differs_between_steps_and_samples_and_is_standard_normal():
    noise = jax.jit(noise_per_sample(_keys(16), (16, 16, 3)))
    draws = np.stack([noise(jnp.int32(t)) for t in range(4)])
    np.testing.assert_array_equal(draws[2], noise(jnp.int32(2)))
    flat = draws.reshape(64, -1)
    correlation = np.corrcoef(flat) - np.eye(64)
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])
    np.testing.assert_allclose(flat.mean(), 0, atol=4 / np.sqrt(flat.size))
    np.testing.assert_allclose(flat.var(), 1, atol=4 * np.sqrt(2 / flat.size))


def test_first_step_ignores_its_noise():
    process = respace(BETAS, "5")
    x = jnp.ones((1, 2, 2, 1))
    for sampler in (ancestral, functools.partial(ddim, eta=1.0)):
        ends = [
            sampler(
                _best_network,
                process,
                Parametrization("eps", "fixed_large"),
                x,
                lambda t, c=c: jnp.where(t == 0, c, 0.5) * jnp.ones_like(x),
            ).x
            for c in (0.0, 100.0)
        ]
        np.testing.assert_array_equal(*ends)


def test_output_of_wrong_width_is_refused():
    with pytest.raises(ValueError, match="expected"):
        ancestral(
            _best_network,
            make_process(BETAS),
            Parametrization("eps", "learned_range"),
            jnp.zeros((1, 2, 2, 1)),
            lambda t: jnp.zeros((1, 2, 2, 1)),
        )


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("frames", [0, 3])
def test_padded_process_gives_the_same_bits_for_every_number_of_steps(sampler, frames):
    network, traces = _counted(_best_network)
    parametrization = Parametrization("eps", "fixed_large")

    @jax.jit
    def sample(process, steps, key):
        noise = noise_per_sample(jax.random.split(key, 4), (5, 5, 1))
        arguments = (network, process, parametrization, noise(steps), noise)
        if sampler == "ddim":
            return ddim(*arguments, eta=0.5, steps=steps, frames=frames)
        return ancestral(*arguments, steps=steps, frames=frames)

    @functools.partial(jax.jit, static_argnums=1)
    def unpadded(process, steps, key):
        return sample.__wrapped__(process, steps, key)

    key = jax.random.key(0)
    processes = [respace(BETAS, "3"), respace(BETAS, "10,15"), respace(BETAS, "40", skip=0.3)]
    found = [sample(padded(p, 1000), np.int32(p.T), key) for p in processes]
    assert sample._cache_size() == 1 and len(traces) <= 2
    for process, samples in zip(processes, found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, samples, unpadded(process, process.T, key))
