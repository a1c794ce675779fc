"""Whole runs of the official code, replayed: losses, samples, bits/dim and training of real UNets.

Every random draw of theirs was recorded. Where our code draws for itself, in the training step and
in the evaluation of the bound, jax.random is made to return the recorded draw, so that what is
compared is the code that a user runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from itertools import pairwise

import golden_cases as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import GRADIENT, OUTPUT, SAMPLER, SMALL, load, to_nchw, to_nhwc
from golden_networks import direction, spec_of, state_dict
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import Objective, training_losses
from iddpm_jax.diffusion.process import q_sample
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import Parametrization, clip_x_0
from iddpm_jax.diffusion.samplers import ancestral, ddim
from iddpm_jax.diffusion.schedules import make_betas
from iddpm_jax.evaluation import nll
from iddpm_jax.images import to_uint8
from iddpm_jax.interop.openai import from_state_dict, to_state_dict
from iddpm_jax.models.unet import make_network
from iddpm_jax.training import runs, step
from iddpm_jax.training.parallel import make_mesh, to_devices

# Nearly all of it compiles a network.
pytestmark = pytest.mark.slow

FILE = "08_end_to_end.npz"
CASES = dict(golden.cases(FILE))
assert_close = functools.partial(golden.assert_close, FILE)
cached_direction = functools.cache(direction)
SAMPLERS = {"p": ancestral, "ddim": ddim}
LOSSES, BOUNDS, RUNS = (
    [name for name, _ in golden.cases(FILE, kind)]
    for kind in ("training_losses", "calc_bpd_loop", "training")
)
SAMPLES = [name for name, case in CASES.items() if case["kind"] in SAMPLERS]

TRAINING = {
    **dict.fromkeys(("loss", "mse", "vb", "lr", "param_norm", "ema_norm"), OUTPUT),
    "grad_norm": GRADIENT,
    **dict.fromkeys(("param_grad_norm", "param_change_norm", "ema_change_norm"), SMALL),
    "param_change_proj": 5e-4,
    "final_param_change_norm_each": 1e-3,
    **dict.fromkeys(("ema_change_proj", "final_param_change_proj_each"), 2e-3),
}
"""Relative tolerances of section 6 of golden/README.md for what is recorded of a training run."""

# Projections were recorded only where rounding leaves them alone.
RECORDED = [(name, key) for name in RUNS for key in TRAINING if f"{name}/{key}" in load(FILE)]


def test_every_recorded_run_is_replayed():
    assert {*LOSSES, *SAMPLES, *BOUNDS, *RUNS} == set(CASES)


def recorded(name: str, key: str) -> np.ndarray:
    """An array of a case; images as [..., H, W, C]."""
    array = load(FILE)[f"{name}/{key}"]
    return to_nhwc(array) if array.ndim >= 4 and not key.endswith("nhwc") else array


def conditions(name: str) -> dict[str, jax.Array]:
    """What the network is given besides x and t."""
    given = [key for key in ("y", "low_res") if f"{name}/{key}" in load(FILE)]
    return {key: jnp.asarray(recorded(name, key)) for key in given}


def pixels(name: str) -> np.ndarray:
    """The clean images of a case as our data pipeline delivers them, uint8."""
    return np.round((recorded(name, "x_start") + 1) * 127.5).astype(np.uint8)


def microbatches_of(case: dict) -> int:
    """Number of parts in which a batch is taken."""
    return case["batch"] // case["microbatch"] if case["microbatch"] > 0 else 1


def objective_of(case: dict) -> tuple[Objective, float]:
    """What is minimised, and the factor from our L_t to what the official code reports as vb."""
    loss, T = case["resolved"]["loss_type"], case["resolved"]["num_timesteps"]
    if loss == "rescaled_kl":
        return Objective("l_vlb"), np.nan
    if not case["resolved"]["var_type"].startswith("learned"):
        return Objective("l_simple"), np.nan
    vlb_weight, factor = {"mse": (1 / T, 1.0), "rescaled_mse": (0.001, T / 1000)}[loss]
    return Objective("l_hybrid", vlb_weight), factor


def model_and_params(name: str) -> tuple[build.Model, dict]:
    """The model that a case's flags stand for, and its recorded weights."""
    case = CASES[name]
    flags, resolved, spec = case["diffusion_flags"], case["resolved"], spec_of(case["unet"])
    betas = make_betas(flags["noise_schedule"], flags["steps"])
    mean = {"epsilon": "eps", "start_x": "x_0"}[resolved["mean_type"]]
    model = build.Model(
        betas=betas,
        process=respace(betas, flags["timestep_respacing"], flags["rescale_timesteps"]),
        rescale_timesteps=flags["rescale_timesteps"],
        parametrization=Parametrization(mean, resolved["var_type"]),
        objective=objective_of(case)[0],
        spec=spec,
        network=make_network(spec),
        image_shape=recorded(name, "x_first" if name in SAMPLES else "x_start").shape[1:],
        low_res_shape=None,
        num_classes=spec.num_classes,
    )
    assert model.process.T == resolved["num_timesteps"]
    return model, from_state_dict(spec, state_dict(case["unet"]))


def measured(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """L2 norms of official parameters, and projections along their recorded directions, [2, P]."""
    flat = [(name, array.astype(np.float64)) for name, array in arrays.items()]
    parts = [(np.linalg.norm(a), np.sum(a * cached_direction(k, a.shape))) for k, a in flat]
    return np.transpose(parts)


def assert_each_close(key: str, value: np.ndarray, r: float, scale: np.ndarray) -> None:
    """assert_close with r relative to the scale of each parameter [..., P], not to the largest."""
    allowed = golden.tolerance(FILE, key, 0.0) + r * scale
    off = (np.abs(value - load(FILE)[key]) / allowed).max()
    assert off <= 1.0, f"{key}: off by {off:.3g} times the tolerance"


@functools.cache
def pullback(unet: str) -> Callable:
    """Output and gradient of a network for a cotangent: one program for all losses."""
    network = make_network(spec_of(unet))

    @jax.jit
    def run(params, x_t, model_t, given, cotangent):
        output, back = jax.vjp(lambda p: network.apply(p, x_t, model_t, **given), params)
        return output, back(cotangent)[0]

    return run


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_match_the_recording(name):
    # Where t = 0, our likelihood is the more accurate (decision 5 of docs/design.md): the recorded
    # rounding error contains the difference, so that no tolerance has to be wider.
    (model, params), run = model_and_params(name), pullback(CASES[name]["unet"])
    x_0, eps, t = (jnp.asarray(recorded(name, key)) for key in ("x_start", "noise", "t"))
    x_t = q_sample(model.process, x_0, t, eps)
    model_t = jnp.asarray(model.process.model_t)[t].astype(jnp.float32)
    inputs = params, x_t, model_t, conditions(name)

    def mean_loss(output):
        settings = model.process, model.parametrization, model.objective
        losses = training_losses(*settings, output, x_0, x_t, t, eps)
        return losses.loss.mean(), losses

    output, _ = run(*inputs, jnp.zeros((*x_0.shape[:-1], model.spec.out_channels)))
    cotangent, losses = jax.grad(mean_loss, has_aux=True)(output)
    _, gradient = run(*inputs, cotangent)

    terms = np.stack([losses.loss, losses.l_simple, objective_of(CASES[name])[1] * losses.l_t])
    # The official code leaves out (as NaN) what does not enter its loss; ours always has it.
    terms[np.isnan(recorded(name, "terms"))] = np.nan
    assert_close(f"{name}/terms", terms, OUTPUT)
    # The bound at the last t is up to 10^6 times the others, which the line above therefore misses.
    np.testing.assert_allclose(terms, recorded(name, "terms_f64"), rtol=1e-4, atol=1e-6)

    norms, projections = measured(to_state_dict(model.spec, gradient))
    scale = recorded(name, "grad_norm")
    assert_each_close(f"{name}/grad_norm", norms, GRADIENT, scale)
    assert_each_close(f"{name}/grad_proj", projections, GRADIENT, scale)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_recording(name):
    case, (model, params) = CASES[name], model_and_params(name)
    given, noise = conditions(name), jnp.asarray(recorded(name, "step_noise"))
    options = {"eta": case["eta"]} if case["kind"] == "ddim" else {}
    samples = SAMPLERS[case["kind"]](
        lambda x, t: model.network.apply(params, x, t, **given),
        model.process,
        model.parametrization,
        jnp.asarray(recorded(name, "x_first")),
        lambda t: noise[case["steps"] - 1 - t],
        transform=clip_x_0 if case["clip_denoised"] else None,
        frames=case["steps"],
        **options,
    )
    assert_close(f"{name}/samples", to_nchw(samples.x_frames), SAMPLER)
    assert_close(f"{name}/final", to_nchw(samples.x), SAMPLER)

    final, levels = recorded(name, "final"), recorded(name, "final_uint8_nhwc")
    np.testing.assert_array_equal(to_uint8(final), levels)
    # A value within the tolerance of the next level may be truncated to either.
    atol, ours = golden.tolerance(FILE, f"{name}/final", SAMPLER), to_uint8(samples.x)
    assert np.all((to_uint8(final - atol) <= ours) & (ours <= to_uint8(final + atol)))


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_matches_the_recording(name, monkeypatch):
    case, (model, params) = CASES[name], model_and_params(name)
    noise = jnp.asarray(recorded(name, "noise"))
    K, count = noise.shape[:2]
    labels = np.asarray(conditions(name).get("y", np.zeros(count)), np.int32)
    source = [{"image": i, "label": y} for i, y in zip(pixels(name), labels, strict=True)]
    monkeypatch.setattr(build, "load_data", lambda *_: source)

    # A term's noise comes of the seed's key, folded with image and step: make it just those two.
    monkeypatch.setattr(jax.random, "fold_in", lambda key, i: (key, i))
    monkeypatch.setattr(jax.random, "normal", lambda key, _: noise[K - 1 - key[1], key[0][1]])
    config = tiny(
        nll__steps=case["diffusion_flags"]["timestep_respacing"],
        nll__terms=0,
        nll__batch_size=count * K,
        nll__clip_x_0=case["clip_denoised"],
    )
    bound = nll.evaluate(config, model, params, make_mesh(jax.devices()[:1]), progress=False)

    # Recorded from the last step to the first.
    for key, table in (("vb", bound.l_t), ("xstart_mse", bound.x_0_mse), ("mse", bound.eps_mse)):
        assert_close(f"{name}/{key}", table[:, ::-1], OUTPUT)
    # One term is up to 10^4 times the others, which the tolerance above therefore misses.
    np.testing.assert_allclose(bound.l_t[:, ::-1], recorded(name, "vb"), rtol=1e-4, atol=1e-6)
    assert_close(f"{name}/prior_bpd", bound.prior, SMALL)
    assert_close(f"{name}/total_bpd", bound.per_image, OUTPUT)


def train(name: str) -> Iterator[tuple[dict, dict, list[dict], dict]]:
    """Our training step on the recorded batch, t, noise and weights.

    Yields:
        Parameters, Adam's mean and averages, by official name, and our metrics, with the weighted
        losses of every example [3, B]: before the first step (no metrics) and after each.
    """
    case, (model, params) = CASES[name], model_and_params(name)
    # Neither the official training loop nor ours sets these.
    assert (case["adam_betas"], case["adam_eps"]) == ([0.9, 0.999], 1e-8)
    config = tiny(
        train__microbatches=microbatches_of(case),
        train__ema_rates=tuple(case["ema_rates"]),
        train__learning_rate=case["lr"],
        train__learning_rate_decay="linear" if case["lr_anneal_steps"] else "constant",
        train__steps=case["lr_anneal_steps"] or case["steps"],
        train__weight_decay=case["weight_decay"],
    )
    network = model.network._replace(init=lambda *_: jax.tree.map(jnp.asarray, params))
    model = dataclasses.replace(model, network=network)
    mesh = make_mesh(jax.devices()[:1])
    state, metrics = runs.new_state(config, model, mesh)(), {}
    train_step = runs.step_function(config, model, mesh)
    batch = to_devices(mesh, {"image": pixels(name), "label": conditions(name).get("y")})
    t, noise = jnp.asarray(recorded(name, "t")), jnp.asarray(recorded(name, "noise"))
    # The official gradient is the sum over microbatches, ours the mean.
    weight = jnp.asarray(microbatches_of(case) * recorded(name, "weights"))
    reported = step._metrics

    def metrics_and_losses(T, examples, losses):
        weighted = jnp.stack(losses) * examples.weight[None]
        return {**reported(T, examples, losses), "losses": weighted}

    def official(tree: dict) -> dict[str, np.ndarray]:
        # A copy, as the next step takes the state's memory.
        return to_state_dict(model.spec, jax.tree.map(np.array, tree))

    for i in range(case["steps"] + 1):
        if i:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(importance, "draw_uniform", lambda *_: (t, weight))
                patch.setattr(jax.random, "normal", lambda *_: noise)
                patch.setattr(step, "_metrics", metrics_and_losses)
                state, metrics = train_step(state, batch)
        averages = [official(state.ema[str(rate)]) for rate in case["ema_rates"]]
        adam_mean = official(optax.tree.get(state.opt_state, "mu"))
        yield official(state.params), adam_mean, averages, jax.device_get(metrics)


@functools.cache
def replay(name: str) -> tuple[dict, dict]:
    """Our values of all that was recorded of a run, and our metrics of its first step."""
    case, (params, means, averages, metrics) = CASES[name], zip(*train(name), strict=True)
    metrics, start = metrics[1:], params[0]

    def change(new: dict, old: dict, rate: float = 1.0) -> np.ndarray:
        """Norms and projections of new - rate old."""
        return measured({k: a.astype(np.float64) - rate * old[k] for k, a in new.items()})

    def trajectory(history: tuple[dict, ...]) -> np.ndarray:
        """norm, change_norm and change_proj of all parameters together [3, S + 1]."""
        changes = np.array([change(arrays, start) for arrays in history])
        norms = np.array([measured(arrays)[0] for arrays in history])
        norms, change_norms = (np.linalg.norm(n, axis=1) for n in (norms, changes[:, 0]))
        return np.array([norms, change_norms, changes[:, 1].sum(axis=1)])

    losses = np.array([m["losses"] for m in metrics], np.float64)
    losses = losses.reshape(len(metrics), 3, microbatches_of(case), -1).sum(axis=3) / case["batch"]
    ours = {"loss": losses[:, 0], "mse": losses[:, 1], "vb": objective_of(case)[1] * losses[:, 2]}
    ours["grad_norm"] = [m["gradient_norm"] for m in metrics]
    ours["lr"] = [m["learning_rate"] for m in metrics]
    # Adam's mean is 0.9 of the last one plus 0.1 of the gradient.
    ours["param_grad_norm"] = [10 * change(b, a, 0.9)[0] for a, b in pairwise(means)]
    last = change(params[-1], start)
    ours["final_param_change_norm_each"], ours["final_param_change_proj_each"] = last
    ema = np.stack([trajectory(history) for history in zip(*averages, strict=True)], axis=-1)
    for prefix, tables in (("param", trajectory(params)), ("ema", ema)):
        for key, table in zip(("norm", "change_norm", "change_proj"), tables, strict=True):
            ours[f"{prefix}_{key}"] = table
    return ours, metrics[0]


@pytest.mark.parametrize("name, key", RECORDED)
def test_training_matches_the_recording(name, key):
    theirs = recorded(name, key)
    # The official code leaves out (as NaN) what does not enter its loss.
    ours = np.where(np.isnan(theirs), np.nan, replay(name)[0][key])
    assert_close(f"{name}/{key}", ours, TRAINING[key])
    if key == "param_grad_norm":
        assert_each_close(f"{name}/{key}", ours, TRAINING[key], theirs)
    if key == "ema_change_norm":
        # The tolerance above hardly sees the slow average, of whose change per cents are rounding.
        np.testing.assert_allclose(ours, theirs, rtol=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_metrics_of_the_first_step_match_the_official_log(name):
    case, (_, metrics) = CASES[name], replay(name)
    T, M, factor = case["resolved"]["num_timesteps"], microbatches_of(case), objective_of(case)[1]
    kl = case["resolved"]["loss_type"] == "rescaled_kl"
    words = {"loss": ("l_vlb" if kl else "loss", 1 / M), "mse": ("l_simple", 1 / M)}
    words |= {"vb": ("l_vlb", factor / T / M), "grad_norm": ("gradient_norm", 1.0)}
    # We report no quartiles of the loss of L_hybrid, and count steps and images elsewhere.
    for key in {key for key, _ in case["logged_first_step"]}:
        word, _, quartile = key.partition("_q")
        logged = [value for other, value in case["logged_first_step"] if other == key]
        ours, scale = words.get(word, ("", 1.0))
        if quartile and f"{ours}_quartile_sum" in metrics:
            sums = scale * metrics[f"{ours}_quartile_sum"]
            np.testing.assert_allclose(sums[int(quartile)], np.sum(logged), rtol=1e-4)
        elif ours and not quartile:
            np.testing.assert_allclose(scale * metrics[ours], np.mean(logged), rtol=1e-4)
