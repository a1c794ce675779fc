"""The configs of the published models: the released networks exactly, and the paper's rows."""

import json
from pathlib import Path

import jax
import pytest
from golden_cases import FOLDER

from iddpm_jax import arguments, build
from iddpm_jax.interop import openai
from iddpm_jax.models.classifier import guided_classifier

ROOT = Path(__file__).resolve().parent.parent
LISTINGS = json.loads((FOLDER / "10_state_dicts.json").read_text())["listings"]

RELEASED = {
    "cifar10_uncond_50M_500K": "cifar10.py:official",
    "cifar10_uncond_vlb_50M_500K": "cifar10.py:official,l_vlb",
    "imagenet64_uncond_100M_1500K": "imagenet64.py:official",
    "imagenet64_uncond_vlb_100M_1500K": "imagenet64.py:official,l_vlb",
    "imagenet64_cond_270M_250K": "imagenet64_classcond.py:official",
    "upsample_cond_500K": "superres_64_256.py:official",
    "lsun_uncond_100M_1200K_bs128": "lsun_bedroom256.py:official",
    "lsun_uncond_100M_2400K_bs64": "lsun_bedroom256.py:official,batch64",
}

GUIDED = [
    name.removeprefix("guided/")
    for name, listing in LISTINGS.items()
    if name.startswith("guided/") and "classifier" not in name
]

COUNTS = {
    "cifar10.py": 52_546_438,
    "imagenet64.py": 121_063_942,
    "imagenet64_classcond.py": 273_049_350,
    "superres_64_256.py": 279_792_390,
    "lsun_bedroom256.py": 113_676_678,
    "imagenet64.py:width64": 30_303_494,
    "imagenet64.py:width96": 68_126_598,
    "imagenet64.py:width128": 121_063_942,
    "imagenet64.py:width192": 272_281_350,
}

# Rows of tables 1 and 2: variants -> T, schedule, loss, timesteps, variance.
ROWS = {
    "T1000,linear,l_simple": (1000, "linear", "l_simple", "uniform", "fixed_large"),
    "linear,l_simple": (4000, "linear", "l_simple", "uniform", "fixed_large"),
    "linear": (4000, "linear", "l_hybrid", "uniform", "learned_range"),
    "l_simple": (4000, "cosine", "l_simple", "uniform", "fixed_large"),
    "": (4000, "cosine", "l_hybrid", "uniform", "learned_range"),
    "l_vlb": (4000, "cosine", "l_vlb", "importance", "learned_range"),
}


def config_of(name: str):
    """The checked config of FILE:VARIANTS, as the command line has it."""
    return arguments.parse(["--config", str(ROOT / "configs" / name), "--workdir", "none"]).config


@pytest.mark.parametrize("name", RELEASED)
def test_config_describes_exactly_the_released_network_and_process(name):
    listing, config = LISTINGS[name], config_of(RELEASED[name])
    flags, model = listing["all_flags"], build.model(config)
    assert list(openai.official_shapes(model.spec).items()) == [
        (entry, tuple(shape)) for entry, shape in listing["entries"]
    ]
    assert config.diffusion.T == flags["diffusion_steps"]
    assert config.diffusion.schedule == flags["noise_schedule"]
    assert config.diffusion.rescale_timesteps == flags["rescale_timesteps"]
    assert config.model.dropout == flags["dropout"]
    assert config.loss.name == ("l_vlb" if flags["use_kl"] else "l_hybrid")
    # A bound "rescaled" to T / 1000 of a term is 0.001 of the whole bound.
    weight = 0.001 if flags["rescale_learned_sigmas"] else 1 / flags["diffusion_steps"]
    assert config.loss.vlb_weight == weight


@pytest.mark.parametrize("name", GUIDED)
def test_config_describes_exactly_the_network_of_guided_diffusion(name):
    listing, config = LISTINGS[f"guided/{name}"], config_of(f"guided.py:{name}")
    flags, model = listing["flags"], build.model(config)
    assert list(openai.official_shapes(model.spec).items()) == [
        (entry, tuple(shape)) for entry, shape in listing["entries"]
    ]
    assert config.diffusion.schedule == flags["noise_schedule"]
    assert config.diffusion.T == flags["diffusion_steps"]
    assert config.model.dropout == flags.get("dropout", 0.0)
    # What names and shapes do not tell.
    new_order = flags.get("use_new_attention_order", False)
    assert config.model.attention_order == ("qkv_first" if new_order else "heads_first")
    assert config.model.num_head_channels == flags.get("num_head_channels", 0)
    assert config.model.num_heads == flags.get("num_heads", 4)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_guided_classifier_is_the_released_one(size):
    entries = LISTINGS[f"guided/{size}x{size}_classifier"]["entries"]
    assert list(openai.official_shapes(guided_classifier(size)).items()) == [
        (entry, tuple(shape)) for entry, shape in entries
    ]


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameters_are_as_many_as_published(name, count):
    shapes = openai.shapes(build.model(config_of(name)).spec)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("file", ["cifar10.py", "imagenet64.py"])
@pytest.mark.parametrize(("variants", "row"), ROWS.items())
def test_every_row_of_the_tables_is_a_choice_of_variants(file, variants, row):
    config = config_of(f"{file}:{variants}")
    process, loss = config.diffusion, config.loss
    assert row == (process.T, process.schedule, loss.name, loss.timesteps, process.variance)
    assert config.train.learning_rate == 1e-4 and config.train.batch_size == 128
    build.model(config)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("cifar10.py", 500_000), ("imagenet64.py", 1_500_000), ("imagenet64.py:200K", 200_000)],
)
def test_training_is_as_long_as_the_tables_say(name, steps):
    assert config_of(name).train.steps == steps


@pytest.mark.parametrize("width", [64, 96, 128, 192])
def test_learning_rate_falls_with_the_root_of_the_width(width):
    rate = config_of(f"imagenet64.py:width{width}").train.learning_rate
    assert rate == pytest.approx(1e-4 * (128 / width) ** 0.5, rel=1e-12)
