"""Settings beside the base config, with the comments of config.py."""

import inspect

from tiny_config import tiny

from iddpm_jax import config as configs
from iddpm_jax.report.settings import meanings, settings


def test_comments_belong_to_the_key_below_or_on_the_line():
    source = """
def base():
    # above, and
    # more above
    c.a.one = "#no comment"
    c.two = 2  # beside
    c.three = (
        3  # inside
    )
    # of nothing

    # above four
    c.four = 4  # and beside
    c.five = 5
"""
    assert meanings(source) == {
        "a.one": "above, and more above",
        "two": "beside",
        "three": "inside",
        "four": "above four and beside",
    }


def test_every_key_of_the_base_config_but_plain_ones_has_a_meaning():
    known = [key for key, _ in configs.flat(configs.base())]
    said = meanings(inspect.getsource(configs.base))
    silent = {"model.num_heads", "fid.seed", "nll.split", "nll.seed"}
    assert set(known) - set(said) <= silent and set(said) <= set(known)
    assert said["diffusion.T"] == "number of steps; paper: 4000, and 1000 for comparison"
    assert "never in evaluation" in said["data.random_flip"]
    assert said["loss.timesteps"].startswith('Steps t are drawn "uniform" or by "importance"')


def test_what_differs_from_the_base_config_is_marked():
    found = {setting.key: setting for setting in settings(tiny())}
    assert list(found) == [key for key, _ in configs.flat(configs.base())]
    assert found["diffusion.T"].differs and not found["diffusion.schedule"].differs
    assert (found["diffusion.T"].value, found["diffusion.T"].base) == (20, 4000)
