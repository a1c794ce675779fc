"""Settings: what is refused and in which words, variants, files, and what makes another run."""

import importlib.util
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from tiny_config import tiny

from iddpm_jax import build, variants
from iddpm_jax import config as configs
from iddpm_jax.checks import check
from iddpm_jax.errors import InputError
from iddpm_jax.variants import COMMON

FILES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))
KEYS = dict(configs.flat(configs.base()))
NUMBERS = [key for key, value in KEYS.items() if type(value) in (int, float)]
FLOATS = [key for key, value in KEYS.items() if type(value) is float]
PATHS = (*"init_from sample.base data.tfds_dir fid.samples fid.reference fid.weights".split(),)
WORDS = [key for key, value in KEYS.items() if type(value) is str and key not in PATHS]
TUPLES = [key for key, value in KEYS.items() if type(value) is tuple]

WRONG = {
    int: ["abc", "1", 1.5, 1.0, True, None, (1,)],
    float: ["abc", "0.5", None, (0.5,)],  # ConfigDict itself makes 1.0 of True
    bool: [1, 0, "true", None],
    str: [3, True, None, ("a",)],
    tuple: [3, 0.9, "(1, 2)", None, ("a",), (True,), ((1,),)],
}


def trainable() -> ConfigDict:
    config = configs.base()
    config.train.steps = 10
    return config


def changed(**values) -> ConfigDict:
    """A trainable config that takes any value, of any type, by dotted key ("__")."""
    config = ConfigDict(trainable().to_dict(), type_safe=False)
    for dotted, value in values.items():
        *sections, name = dotted.replace("__", ".").split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return config


def refusal(**values) -> str:
    with pytest.raises(InputError) as caught:
        check(changed(**values))
    text = str(caught.value)
    assert "\n" not in text
    return text


def get_config(path: Path, variants: str = "") -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants)


def test_base_needs_nothing_but_train_steps():
    with pytest.raises(InputError, match=r"train\.steps is 0"):
        check(configs.base())
    check(trainable())


def test_base_refuses_keys_and_types_that_are_not_its_own():
    config = configs.base()
    with pytest.raises((AttributeError, KeyError)):
        config.model.widht = 64
    with pytest.raises(TypeError):
        config.model.width = "wide"


def test_base_is_new_every_time():
    configs.base().model.width = 32
    assert configs.base().model.width == 128


def test_flat_names_every_key_once():
    nested = configs.base().to_dict()
    expected = {key: nested.pop(key) for key in ("seed", "init_from")}
    for section, values in nested.items():
        expected.update({f"{section}.{name}": value for name, value in values.items()})
    found = list(configs.flat(configs.base()))
    assert len(found) == len(expected) and dict(found) == expected


@pytest.mark.parametrize("key", KEYS)
def test_value_of_a_wrong_type_is_refused_by_name(key):
    for value in WRONG[type(KEYS[key])]:
        text = refusal(**{key: value})
        assert key in text and repr(value) in text and "must be" in text


@pytest.mark.parametrize("key", NUMBERS)
def test_number_below_its_range_is_refused_by_name(key):
    text = refusal(**{key: type(KEYS[key])(-1)})
    assert key in text and "-1" in text


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", FLOATS)
def test_number_that_is_not_finite_is_refused_by_name(key, value):
    text = refusal(**{key: value})
    assert key in text and "finite" in text


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, 1.0, -0.5])
def test_average_whose_rate_is_no_share_is_refused(value):
    assert "train.ema_rates" in refusal(train__ema_rates=(0.9999, value))


@pytest.mark.parametrize("key", TUPLES)
def test_tuple_with_one_wrong_element_is_refused_by_name(key):
    good = 0.9999 if key == "train.ema_rates" else 1
    wrong = {"train.ema_rates": 1, "model.channel_mult": "1.5", "nll.ema_rates": "0"}.get(key, 1.5)
    for bad in ("a", None, True, wrong):
        assert key in refusal(**{key: (good, bad)})


@pytest.mark.parametrize(
    "key",
    (
        "loss.uniform_share model.dropout model.label_dropout sample.eta sample.ema_rate "
        "nll.ema_rate data.random_crop"
    ).split(),
)
def test_share_above_one_is_refused_by_name(key):
    assert f"{key} is 1.5" in refusal(**{key: 1.5})


@pytest.mark.parametrize(
    "key, value",
    [
        ("loss.uniform_share", 0.0),
        ("loss.uniform_share", 1.0),
        ("sample.eta", 1.0),
        ("sample.eta", 1),
        ("sample.ema_rate", 0.0),
        ("nll.ema_rate", 0.0),
        ("train.sample_every_steps", 0),
        ("train.warmup_steps", 0),
        ("train.gradient_clip", 0.0),
        ("model.attention_resolutions", ()),
        ("model.attention_resolutions", [16, 8]),
        ("sample.classes", (0, 3, 3)),
        ("diffusion.T", 1),
    ],
)
def test_value_at_the_edge_of_its_range_is_taken(key, value):
    check(changed(**{key: value}))


@pytest.mark.parametrize("key", WORDS)
def test_unknown_word_is_refused_by_name(key):
    config = tiny(**{key.replace(".", "__"): "nonsense"})
    with pytest.raises(InputError) as caught:
        build.model(config)
    assert key in str(caught.value) and "nonsense" in str(caught.value)


@pytest.mark.parametrize(
    "key, legal",
    [
        ("loss.timesteps", ("uniform", "importance")),
        ("model.attention_order", ("heads_first", "qkv_first")),
        ("model.dtype", ("auto", "float32", "bfloat16", "float16")),
        ("train.learning_rate_decay", ("constant", "linear")),
        ("sample.sampler", ("ancestral", "ddim")),
        ("sample.variance", ("", "fixed_small", "fixed_large")),
        ("sample.class_choice", ("balanced", "random")),
        ("nll.split", ("train", "test")),
        ("fid.split", ("train", "test")),
        ("fid.network", ("auto", "inception", "digits", "emoji")),
        ("fid.preprocessing", ("pytorch_fid", "tensorflow")),
    ],
)
def test_closed_words_take_their_words_and_no_other(key, legal):
    for word in legal:
        check(changed(**{key: word}))
    text = refusal(**{key: "Nonsense"})
    assert key in text and all(word in text for word in legal)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"train__steps": 0}, ["train.steps", "--config.train.steps="]),
        ({"train__learning_rate": 0.0}, ["train.learning_rate", "above 0"]),
        (
            {"train__batch_size": 100, "train__microbatches": 8},
            ["train.batch_size 100", "8 microbatches"],
        ),
        ({"train__ema_rates": (0.99, 1.5)}, ["train.ema_rates", "between 0 and 1"]),
        ({"model__channel_mult": ()}, ["model.channel_mult"]),
        ({"model__channel_mult": (1, 0)}, ["model.channel_mult", "above 0"]),
        ({"sample__ema_rate": 0.5}, ["sample.ema_rate is 0.5", "0.9999", "train.ema_rates"]),
        ({"sample__skip": 1.0}, ["sample.skip is 1.0", "below 1"]),
        (
            {"sample__variance": "fixed_large", "sample__sampler": "ddim"},
            ["sample.variance", "DDIM", "sample.eta"],
        ),
        ({"nll__ema_rate": 0.5}, ["nll.ema_rate is 0.5", "0.9999", "train.ema_rates"]),
    ],
)
def test_values_that_do_not_go_together_are_refused_in_words(values, words):
    text = refusal(**values)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"loss__name": "l_simple"},
            ["l_simple", "learned variance", "fixed_small", "fixed_large", "l_hybrid"],
        ),
        (
            {"loss__name": "l_simple", "diffusion__variance": "learned"},
            ["l_simple", "learned variance"],
        ),
        (
            {"diffusion__variance": "fixed_small"},
            ["l_hybrid", "learned_range", "l_simple", "diffusion.variance"],
        ),
    ],
)
def test_loss_that_does_not_fit_the_variance_is_refused_in_words(values, words):
    with pytest.raises(InputError) as error:
        build.model(changed(**values))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_l_vlb_goes_with_every_variance(variance):
    build.model(changed(loss__name="l_vlb", diffusion__variance=variance))


def test_no_averages_at_all_are_fine_where_none_is_used():
    check(changed(train__ema_rates=(), sample__ema_rate=0.0, nll__ema_rate=0.0))


def test_key_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"model\.widht.*model\.width"):
        check(changed(model__widht=64))


def test_key_that_is_missing_is_refused():
    config = changed()
    del config.model["width"]
    with pytest.raises(InputError, match=r"model\.width"):
        check(config)


def test_saved_config_loads_the_same(tmp_path):
    config = trainable()
    config.seed = 7
    config.data.random_flip = True
    config.train.ema_rates = (0.99, 0.999)
    config.sample.ema_rate = 0.99
    config.sample.classes = (3, 8)
    config.model.attention_resolutions = ()
    config.model.dropout = 0.3
    config.sample.steps = "10,15,20"
    configs.save(config, tmp_path / "config.json")
    loaded = configs.load(tmp_path / "config.json")
    assert loaded.to_dict() == config.to_dict()
    types = [(key, type(value)) for key, value in configs.flat(loaded)]
    assert types == [(key, type(value)) for key, value in KEYS.items()]
    assert loaded.is_locked
    assert configs.differences(config, loaded) == []


def test_saved_config_is_json_of_every_key(tmp_path):
    configs.save(trainable(), tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    assert text.endswith("}\n")
    stored = json.loads(text)
    assert stored["train"]["steps"] == 10
    assert stored["model"]["channel_mult"] == [1, 2, 2, 2]
    assert sum(len(v) if isinstance(v, dict) else 1 for v in stored.values()) == len(KEYS)


def test_key_that_an_older_file_lacks_takes_its_default(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seed": 3, "train": {"steps": 5}}))
    loaded = configs.load(path)
    assert (loaded.seed, loaded.train.steps, loaded.model.width) == (3, 5, 128)


@pytest.mark.parametrize("stored, word", [("true", "blocks"), ("false", "none")])
def test_remat_of_an_older_file_becomes_a_word(tmp_path, stored, word):
    path = tmp_path / "config.json"
    path.write_text('{"model": {"remat": ' + stored + "}}")
    assert configs.load(path).model.remat == word


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"seed": ',
        "[1, 2]",
        "3",
        '{"seed": "three"}',
        '{"seed": null}',
        '{"seed": {"of": 3}}',
        '{"model": 3}',
        '{"model": {"width": 1.5}}',
        '{"model": {"channel_mult": 3}}',
        '{"model": {"channel_mult": [1, null]}}',
        '{"model": {"channel_mult": "12"}}',
        '{"train": {"ema_rates": null}}',
        '{"train": {"learning_rate": NaN}}',
    ],
)
def test_damaged_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        configs.load(path)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        configs.load(path)


def test_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        configs.load(tmp_path / "config.json")


def test_file_with_an_unknown_key_gets_a_suggestion(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": {"widht": 64}}))
    with pytest.raises(InputError, match=r"'model\.widht'.*did you mean 'model\.width'"):
        configs.load(path)


@pytest.mark.parametrize(
    "key, words",
    [
        ("train.stepz", "; did you mean 'train.steps'?"),
        ("model.num_head", "; did you mean 'model.num_heads'?"),
        ("zzz", ""),
    ],
)
def test_suggestion_is_the_nearest_key_or_nothing(key, words):
    assert configs.suggestion(key) == words


OTHER = {int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, bool: lambda v: not v}
FREE = [
    key
    for key in KEYS
    if key.startswith(("sample.", "nll.", "fid.", "gradients."))
    or key
    in (
        "train.steps train.fsdp train.hang_seconds train.keep_checkpoints train.log_every_steps "
        "train.sample_every_steps train.checkpoint_every_steps train.keep_best "
        "train.keep_every_steps train.evaluate_every_steps train.evaluate_images data.corrupt "
        "data.tfds_dir data.num_threads data.prefetch_batches model.convolution"
    ).split()
]


@pytest.mark.parametrize(
    "key", ["steps", "log_every_steps", "checkpoint_every_steps", "keep_every_steps"]
)
def test_whatever_is_done_between_dispatches_is_due_between_them(key):
    config = configs.base()
    config.train.update(steps=400, steps_per_dispatch=4)
    check(config)
    config.train[key] = 402
    with pytest.raises(InputError, match=rf"train\.{key} is 402, not a multiple .* is 4"):
        check(config)


@pytest.mark.parametrize("key", KEYS)
def test_only_free_keys_may_differ_on_resume(key):
    old = KEYS[key]
    new = OTHER.get(type(old), lambda v: v + v[:1] or (1,) if type(v) is tuple else v + "x")(old)
    config = configs.base()
    config.update_from_flattened_dict({key: new})
    expected = [] if key in FREE else [f"{key}: {old} -> {new}"]
    assert configs.differences(configs.base(), config) == expected


def test_differences_lists_every_one():
    config = configs.base()
    config.seed = 1
    config.model.width = 64
    config.sample.count = 1
    changes = configs.differences(configs.base(), config)
    assert sorted(changes) == ["model.width: 128 -> 64", "seed: 0 -> 1"]


@pytest.mark.parametrize(
    "names, expected",
    [
        ("", {}),
        ("l_simple", {"loss.name": "l_simple", "diffusion.variance": "fixed_large"}),
        ("l_hybrid", {}),
        ("l_vlb", {"loss.name": "l_vlb", "loss.timesteps": "importance"}),
        ("linear", {"diffusion.schedule": "linear"}),
        (
            "l_vlb,linear",
            {
                "loss.name": "l_vlb",
                "loss.timesteps": "importance",
                "diffusion.schedule": "linear",
            },
        ),
        ("linear,cosine", {}),
        ("linear,", {"diffusion.schedule": "linear"}),
    ],
)
def test_common_variant_changes_what_it_names(names, expected):
    config = configs.base()
    variants.apply(config, names, {})
    assert dict(configs.flat(config)) == {**KEYS, **expected}


def test_config_file_adds_its_own_variants():
    config = configs.base()
    variants.apply(config, "tiny", {"tiny": lambda c: c.model.update(width=32)})
    assert config.model.width == 32


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(InputError) as caught:
        variants.apply(configs.base(), "linear,l_vbl", {"tiny": lambda c: None})
    for word in ("'l_vbl'", "l_simple", "l_hybrid", "l_vlb", "linear", "cosine", "tiny"):
        assert word in str(caught.value)


def test_there_are_config_files():
    assert "digits" in [path.stem for path in FILES]


@pytest.mark.parametrize("variants", ["", *COMMON, "l_simple,linear"])
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_config_file_builds_with_every_common_variant(path, variants):
    config = get_config(path, variants)
    assert set(dict(configs.flat(config))) == set(KEYS)
    model = build.model(config)
    assert model.process.T == config.diffusion.T


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_config_file_refuses_an_unknown_variant(path):
    with pytest.raises(InputError, match="'nonsense' is unknown"):
        get_config(path, "nonsense")


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_config_file_says_which_variants_it_has(path):
    with pytest.raises(InputError) as caught:
        get_config(path, "nonsense")
    for variant in str(caught.value).split("use one of ")[1].split(", "):
        build.model(get_config(path, variant))
