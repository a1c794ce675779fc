"""PyTorch's side of the benchmarks does the same work as ours: network, loss, terms, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contest import Workload
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.diffusion.losses import Objective, training_losses
from iddpm_jax.diffusion.process import make_process, q_sample
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.schedules import make_betas
from iddpm_jax.evaluation.terms import term_values
from iddpm_jax.interop.openai import to_state_dict
from iddpm_jax.models.flops import flops_per_image
from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.models.unet import make_network

torch = pytest.importorskip("torch")

T = 40
PARAMETRIZATION = Parametrization("eps", "learned_range")


def config(**overrides):
    """Two levels, the second with attention; T of them."""
    found = tiny(
        data__image_shape=(8, 8, 3),
        data__num_classes=10,
        diffusion__T=T,
        model__channel_mult=(1, 2),
        model__attention_resolutions=(4,),
        model__dtype="float32",
    )
    found.update_from_flattened_dict(overrides)
    return found


def random_like(params):
    """Weights without zeros, so that every layer has its say."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0.05, 0.2 / np.sqrt(max(1, leaf.ndim)), leaf.shape).astype("f4"),
        params,
    )


def channels_first(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array, np.float32), -1, 1).copy())


@pytest.fixture(scope="module")
def batch():
    """(x_0, t, eps, output) for early and late steps; pixels at both ends are among x_0."""
    rng = np.random.default_rng(1)
    t = np.array([0, 0, 1, 7, T - 2, T - 1], np.int32)
    x_0 = rng.choice([0, 1, 90, 254, 255], (len(t), 8, 8, 3)).astype(np.float32) / 127.5 - 1
    eps = rng.standard_normal(x_0.shape).astype(np.float32)
    wrong = eps + 0.1 * rng.standard_normal(x_0.shape)
    v = rng.uniform(-1.2, 1.2, x_0.shape)
    return x_0, t, eps, np.concatenate([wrong, v], axis=-1).astype(np.float32)


# The network


@pytest.mark.slow  # as importing torch is
@pytest.mark.parametrize("scale_shift_norm, num_classes", [(True, 0), (False, 0), (True, 3)])
def test_original_network_gives_the_outputs_of_ours(scale_shift_norm, num_classes):
    from contenders.original_network import OriginalUNet

    spec = UNetSpec(
        width=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(2,),
        num_classes=num_classes,
        scale_shift_norm=scale_shift_norm,
    )
    ours, twin = make_network(spec), OriginalUNet(spec)
    params = random_like(jax.eval_shape(lambda: ours.init(jax.random.key(0), (8, 8, 3))))
    arrays = to_state_dict(spec, params)
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    t, y = np.array([0.0, 0.25, 999.75], np.float32), np.array([0, 2, 1], np.int32)
    y = y if num_classes else None
    expected = np.asarray(ours.apply(params, x, t, y))
    labels = None if y is None else torch.from_numpy(y)
    with torch.no_grad():
        output = twin(channels_first(x), torch.from_numpy(t), labels)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(
        output.permute(0, 2, 3, 1), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


# Losses and terms


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_hybrid_loss_is_that_of_training(batch, schedule):
    from contenders import torch_work

    x_0, t, eps, output = batch
    process = make_process(make_betas(schedule, T))
    x_t = q_sample(process, x_0, t, eps)
    objective = Objective("l_hybrid", 0.01)
    ours = training_losses(process, PARAMETRIZATION, objective, output, x_0, x_t, t, eps)
    predicted = channels_first(output).requires_grad_()
    settings = config(**{"diffusion.schedule": schedule})
    theirs = torch_work.hybrid_loss(
        torch_work.Process(settings),
        lambda *_: predicted,
        0.01,
        channels_first(x_0),
        torch.from_numpy(t).long(),
        channels_first(eps),
        None,
    )
    np.testing.assert_allclose(theirs.detach(), ours.loss, rtol=2e-4)

    def loss(output):
        found = training_losses(process, PARAMETRIZATION, objective, output, x_0, x_t, t, eps)
        return found.loss.sum()

    theirs.sum().backward()
    gradient = predicted.grad.permute(0, 2, 3, 1)
    expected = np.asarray(jax.grad(loss)(jnp.asarray(output)))
    np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("clip", [True, False])
def test_terms_of_the_bound_are_those_of_evaluation(batch, clip):
    from contenders import torch_work

    x_0, t, eps, output = batch
    process = make_process(make_betas("cosine", T))
    x_t = q_sample(process, x_0, t, eps)
    ours = term_values(process, PARAMETRIZATION, clip, output, x_0, x_t, t, eps)
    theirs = torch_work.Process(config()).l_t(
        *map(channels_first, (output, x_0, x_t)), torch.from_numpy(t).long(), clip
    )
    np.testing.assert_allclose(theirs, ours["l_t"], rtol=2e-4)


# Sizes


@pytest.mark.slow
def test_original_network_does_the_counted_work():
    """As many multiply-adds as ours has, and those with the zeros around an image."""
    from contenders import torch_work
    from contenders.original_network import OriginalUNet

    spec = build.model(config()).spec
    with torch.device("meta"):
        x, t, y = torch.zeros(1, 3, 64, 64), torch.zeros(1), torch.zeros(1).int()
        found = torch_work.size(OriginalUNet(spec), x, t, y)
    counted = flops_per_image(spec, (64, 64, 3)) / 1e9
    assert counted < found["gflops_forward_per_image"] < 1.05 * counted


@pytest.mark.slow
def test_diffusers_network_has_the_size_and_the_heads_of_the_original():
    pytest.importorskip("diffusers")
    from contenders import diffusers_unet, torch_work
    from contenders.original_network import OriginalUNet

    settings = config(**{"model.num_heads": 4})
    spec = build.model(settings).spec
    with torch.device("meta"):
        x, t, y = torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1).int()
        expected = torch_work.size(OriginalUNet(spec), x, t, y)
        network = diffusers_unet.make_network(spec, (8, 8, 3))
    assert diffusers_unet.describe(Workload("train", settings.to_json(), 1, "")) == expected
    assert [m.heads for m in network.modules() if hasattr(m, "heads")] == [4] * 4


@pytest.mark.slow
def test_ddpm_pytorch_network_has_two_blocks_a_level_whatever_the_config_says():
    pytest.importorskip("denoising_diffusion_pytorch")
    from contenders import ddpm_pytorch

    sizes = [
        ddpm_pytorch.describe(
            Workload("train", config(**{"model.num_res_blocks": n}).to_json(), 1, "")
        )
        for n in (1, 3)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0]["gflops_forward_per_image"] > 0
