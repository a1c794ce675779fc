"""A config that compiles in seconds: digits, one level, T = 20."""

from ml_collections import ConfigDict

from iddpm_jax import config as base_config


def tiny(**overrides: object) -> ConfigDict:
    """The config, changed by dotted keys with underscores for dots: train__steps=3."""
    config = base_config.base()
    config.update_from_flattened_dict(
        {
            "data.name": "digits",
            "diffusion.T": 20,
            "model.width": 32,
            "model.channel_mult": (1,),
            "model.num_res_blocks": 1,
            "model.attention_resolutions": (),
            "model.num_heads": 2,
            "model.class_conditional": True,
            "train.steps": 4,
            "train.batch_size": 16,
            "train.ema_rates": (0.5, 0.9),
            "train.learning_rate": 1e-3,
            "train.log_every_steps": 2,
            "train.sample_every_steps": 0,
            "train.checkpoint_every_steps": 100,
            "sample.count": 8,
            "sample.steps": "5",
            "sample.batch_size": 8,
            "sample.ema_rate": 0.9,
            "nll.batch_size": 128,
            "nll.terms": 2,
            "nll.ema_rate": 0.9,
        }
    )
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return config


def get_config(_: str = "") -> ConfigDict:
    """For the command line: --config tests/tiny_config.py."""
    return tiny()
