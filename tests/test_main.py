"""The command line: what it accepts, and that bad input costs one line and nothing else."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from iddpm_jax import arguments, inspection, main, runtime, variants
from iddpm_jax import config as configs
from iddpm_jax.errors import DivergedError
from iddpm_jax.evaluation import names
from iddpm_jax.training import loop

ROOT = Path(__file__).resolve().parent.parent
DIGITS = "configs/digits.py"
MODES = [
    (mode,) if mode != "convert" else (mode, "--target", "x")
    for mode in arguments.MODES
    if mode != "plan"
]
"""Each mode that is about a workdir, with the flags that it cannot do without."""

CONFIG_FILE = """\
from ml_collections import ConfigDict
from iddpm_jax import config as base_config


def get_config(variants=""):
    config = base_config.base()
    config.train.steps = 3
"""


@pytest.fixture(name="configured")
def record_configure(monkeypatch):
    """Calls of runtime.configure, which must not touch a JAX that has started."""
    calls = []
    monkeypatch.setattr(runtime, "configure", lambda *arguments: calls.append(arguments))
    monkeypatch.delenv("DEVICES", raising=False)
    return calls


@pytest.fixture(name="cli")
def make_cli(configured, monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def begin(*_):
        raise AssertionError("the run has begun")

    # No test here may train, whatever is wrong.
    monkeypatch.setattr(loop, "new_state", begin)

    def call(*arguments):
        # A process loads one config file; here the one before must not linger.
        sys.modules.pop("config_config", None)
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield call
    sys.modules.pop("config_config", None)


@pytest.fixture(name="trained")
def record_train(monkeypatch):
    """Configs that reached the training loop, which is left out."""
    configs_seen = []

    def train(config, *_):
        configs_seen.append(config)

    monkeypatch.setattr(loop, "train", train)
    return configs_seen


@pytest.fixture(name="workdir")
def name_workdir(tmp_path):
    return tmp_path / "run"


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def store_run(workdir: Path, **changes) -> bytes:
    """A workdir that holds the digits run, without a checkpoint."""
    workdir.mkdir()
    config = digits()
    config.update_from_flattened_dict(changes)
    configs.save(config, workdir / "config.json")
    return (workdir / "config.json").read_bytes()


def digits():
    """The config as a workdir has it, with what the data say filled in."""
    namespace = {}
    exec((ROOT / DIGITS).read_text(), namespace)
    config = namespace["get_config"]("")
    config.data.update(image_shape=(8, 8, 1), num_classes=10)
    return config


def assert_refused(cli, tmp_path, arguments, *words):
    """One line that says every word, exit code 2, and not a byte changed."""
    before = contents(tmp_path)
    code, out, err = cli(*arguments)
    assert code == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "\\n" not in err, "a message in quotes, with its line breaks spelled out"
    assert out == ""
    for word in words:
        assert word in err
    assert contents(tmp_path) == before


OVERRIDES = [
    ("unknown key", ["train.stepz=3"], ["'train.stepz'", "did you mean 'train.steps'"]),
    ("unknown section", ["trian.steps=3"], ["'trian.steps'", "did you mean 'train.steps'"]),
    ("section as value", ["train=3"], ["'train'"]),
    ("word for int", ["train.steps=abc"], ["train.steps", "abc"]),
    ("fraction for int", ["train.steps=1.5"], ["train.steps", "1.5"]),
    ("exponent for int", ["train.steps=1e3"], ["train.steps", "1e3"]),
    ("word for float", ["train.learning_rate=fast"], ["train.learning_rate", "fast"]),
    ("nan", ["train.learning_rate=nan"], ["train.learning_rate", "finite"]),
    ("inf", ["train.weight_decay=inf"], ["train.weight_decay", "finite"]),
    ("word for bool", ["data.random_flip=maybe"], ["data.random_flip", "maybe"]),
    ("word for film", ["sample.film=often"], ["sample.film", "often"]),
    ("odd widths", ["model.channel_mult=(1,1.5)"], ["channel_mult 1.5", "multiple of 32"]),
    ("word for tuple", ["model.channel_mult=abc"], ["model.channel_mult", "abc"]),
    ("open tuple", ["model.channel_mult=(1,"], ["model.channel_mult"]),
    ("no levels", ["model.channel_mult=()"], ["model.channel_mult"]),
    ("too many levels", ["model.channel_mult=(1,1,1,1,1,1)"], ["model.channel_mult", "6 levels"]),
    ("attention size", ["model.attention_resolutions=(5,)"], ["model.attention_resolutions", "5"]),
    ("width", ["model.width=33"], ["model", "width 33", "32"]),
    ("heads", ["model.num_heads=5"], ["model", "5 heads"]),
    ("T below 1", ["diffusion.T=0"], ["diffusion.T", "at least 1"]),
    (
        "T of linear",
        ["diffusion.schedule=linear", "diffusion.T=10"],
        ["diffusion.T is 10", "linear"],
    ),
    ("T where beta is 1", ["diffusion.schedule=linear", "diffusion.T=20"], ["diffusion.T is 20"]),
    ("schedule", ["diffusion.schedule=x"], ["diffusion.schedule", "linear, cosine"]),
    ("data", ["data.name=cats"], ["data.name", "digits, emoji"]),
    ("no steps", ["train.steps=0"], ["train.steps is 0", "--config.train.steps="]),
    ("last one counts", ["train.steps=5", "train.steps=0"], ["train.steps is 0"]),
    ("microbatches", ["train.batch_size=129", "train.microbatches=2"], ["129", "2 microbatches"]),
    ("train by devices", ["train.batch_size=126"], ["126", "4 devices"]),
    (
        "devices x microbatches",
        ["train.batch_size=132", "train.microbatches=2"],
        ["132", "4 devices x 2 microbatches"],
    ),
    ("nll by devices", ["nll.batch_size=99"], ["99", "4 devices"]),
    ("batch above data", ["train.batch_size=2000"], ["train.batch_size 2000", "1438 images"]),
    ("class", ["sample.classes=(3,11)"], ["sample.classes", "11", "0 to 9"]),
    ("class below 0", ["sample.classes=(-1,)"], ["sample.classes", "-1", "0 to 9"]),
    (
        "class of unconditional",
        ["model.class_conditional=false", "sample.classes=(3,)"],
        ["sample.classes", "unconditional"],
    ),
    ("no stride", ["sample.steps=ddim999"], ["sample.steps", "999"]),
    ("steps as word", ["sample.steps=abc"], ["sample.steps", "'abc'", "ddim50"]),
    ("more steps than T", ["sample.steps=5000"], ["sample.steps", "5000", "1000"]),
    ("no step", ["nll.steps=0"], ["nll.steps"]),
    ("untrained average", ["sample.ema_rate=0.5"], ["sample.ema_rate is 0.5", "(0.99,)"]),
    ("average of one", ["train.ema_rates=(0.99,1.0)"], ["train.ema_rates", "between 0 and 1"]),
    ("loss", ["loss.name=l_simple"], ["l_simple", "fixed_small"]),
    ("sampler", ["sample.sampler=euler"], ["sample.sampler", "ancestral, ddim"]),
    # JAX's own limit of a seed is 64 bits.
    ("seed", ["seed=99999999999999999999"], ["seed"]),
]


@pytest.mark.parametrize(
    "overrides, words", [c[1:] for c in OVERRIDES], ids=[c[0].replace(" ", "_") for c in OVERRIDES]
)
def test_bad_value_is_refused(cli, tmp_path, workdir, overrides, words):
    flags = [f"--config.{override}" for override in overrides]
    arguments = ["--config", DIGITS, "--workdir", workdir, *flags]
    assert_refused(cli, tmp_path, arguments, *words)


FLAGS = [
    ("mode", ["--mode", "fly"], ["--mode", "fly", "train", "sample", "nll"]),
    ("mode without value", ["--mode"], ["mode"]),
    ("flag", ["--fly"], ["fly"]),
    ("flag with value", ["--fly=1"], ["fly"]),
    ("stray word", ["stray"], ["'stray'"]),
    ("no device", ["--devices=0"], ["--devices", "0"]),
    ("devices as word", ["--devices=x"], ["--devices", "x"]),
    ("processes without number", ["--coordinator=a:1"], ["--num_processes", "all three or none"]),
    (
        "process beyond the last",
        ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
        ["--process_id is 2", "0 to 1"],
    ),
    (
        "coordinator without port",
        ["--coordinator=a", "--num_processes=2", "--process_id=0"],
        ["--coordinator", "HOST:PORT"],
    ),
    (
        "processes found and named",
        ["--distributed", "--coordinator=a:1", "--num_processes=2", "--process_id=0"],
        ["without --distributed"],
    ),
    ("bucket", ["--workdir=gs://bucket/run"], ["gs://bucket/run", "mount"]),
    ("override without value", ["--config.train.steps"], ["train.steps"]),
    ("spaced override", ["--config.train.steps", "3x"], ["train.steps", "3x"]),
    ("no-flag of unknown key", ["--noconfig.model.rematt"], ["rematt"]),
    ("another config file", ["--config", "configs/none.py"], ["config"]),
    ("flag file", ["--flagfile=none"], ["none"]),
]


@pytest.mark.parametrize(
    "flags, words", [c[1:] for c in FLAGS], ids=[c[0].replace(" ", "_") for c in FLAGS]
)
def test_bad_flag_is_refused(cli, tmp_path, workdir, trained, flags, words):
    arguments = ["--config", DIGITS, "--workdir", workdir, *flags]
    assert_refused(cli, tmp_path, arguments, *words)


@pytest.mark.parametrize("given", [[], ["--workdir"], ["--workdir="]])
def test_missing_workdir_is_refused(cli, tmp_path, given):
    assert_refused(cli, tmp_path, ["--config", DIGITS, *given], "--workdir is missing")


@pytest.mark.parametrize("given", [[], ["--config"], ["--config="]])
@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_missing_config_is_refused_with_the_files_there_are(cli, tmp_path, workdir, mode, given):
    arguments = ["--workdir", workdir, "--mode", *mode, *given]
    assert_refused(cli, tmp_path, arguments, "--config is missing", DIGITS)


def test_missing_config_is_refused_where_there_is_no_folder_of_them(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(cli, tmp_path, ["--workdir", "run"], "--config is missing", "configs/")


@pytest.mark.parametrize("name", ["configs/none.py", "configs/none.py:linear", "configs"])
def test_config_file_that_is_not_there_is_refused(cli, tmp_path, workdir, name):
    arguments = ["--config", name, "--workdir", workdir]
    assert_refused(cli, tmp_path, arguments, name.split(":")[0], "does not exist", DIGITS)


def test_unknown_variant_is_refused_with_the_known_ones(cli, tmp_path, workdir):
    arguments = ["--config", f"{DIGITS}:linear,l_vbl", "--workdir", workdir]
    assert_refused(cli, tmp_path, arguments, "'l_vbl'", "l_simple", "l_vlb", "linear", "cosine")


BROKEN = {
    "raises": ("    raise RuntimeError('the disk is full')\n", "the disk is full"),
    "raises_lines": ("    raise RuntimeError('first\\nsecond')\n", "second"),
    "misspells": ("    config.model.widht = 3\n    return config\n", "widht"),
    "word_for_int": ("    config.model.width = 'a'\n    return config\n", "width"),
    "forgets_return": ("", "get_config"),
    "returns_number": ("    return 3\n", "get_config"),
    "returns_empty": ("    return ConfigDict()\n", "get_config"),
    "drops_key": (
        "    config.unlock()\n    del config.model.width\n    return config\n",
        "model.width",
    ),
    "invents_key": (
        "    config.data.name = 'emoji'\n    config.unlock()\n    config.model.depth = 3\n"
        "    return config\n",
        "model.depth",
    ),
    "syntax": ("    def f(:\n", "syntax"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_config_file_is_refused(cli, tmp_path, workdir, trained, name):
    body, word = BROKEN[name]
    path = tmp_path / "broken.py"
    path.write_text(CONFIG_FILE + body)
    assert_refused(cli, tmp_path, ["--config", path, "--workdir", workdir], word)


def test_config_file_without_get_config_is_refused(cli, tmp_path, workdir):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\n")
    assert_refused(cli, tmp_path, ["--config", path, "--workdir", workdir], "get_config")


@pytest.mark.parametrize("value", ["abc", "0", "-1"])
def test_bad_devices_variable_is_refused(cli, tmp_path, workdir, monkeypatch, trained, value):
    monkeypatch.setenv("DEVICES", value)
    arguments = ["--config", DIGITS, "--workdir", workdir]
    assert_refused(cli, tmp_path, arguments, "devices", value)


def test_workdir_that_is_a_file_is_refused(cli, tmp_path, workdir, trained):
    workdir.write_text("mine")
    assert_refused(cli, tmp_path, ["--config", DIGITS, "--workdir", workdir], str(workdir))


@pytest.mark.parametrize(
    "config, override, words",
    [
        (DIGITS, "model.width=64", ["model.width: 32 -> 64"]),
        (DIGITS, "seed=1", ["seed: 0 -> 1"]),
        (f"{DIGITS}:linear", "seed=0", ["diffusion.schedule: cosine -> linear"]),
        ("configs/emoji.py", "seed=0", ["diffusion.T: 1000 -> 4000", "more"]),
    ],
)
@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_workdir_of_another_run_is_refused(
    cli, tmp_path, workdir, trained, mode, config, override, words
):
    store_run(workdir)
    arguments = ["--config", config, "--workdir", workdir, "--mode", *mode, f"--config.{override}"]
    assert_refused(cli, tmp_path, arguments, "config.json", "--workdir", *words)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("override", ["model.width=64", "diffusion.schedule=linear"])
def test_override_that_makes_another_run_is_refused_without_a_config_too(
    cli, tmp_path, workdir, trained, override, mode
):
    store_run(workdir)
    arguments = ["--workdir", workdir, "--mode", *mode, f"--config.{override}"]
    assert_refused(cli, tmp_path, arguments, "config.json", override.split("=")[0])


@pytest.mark.parametrize(
    "text", ['{"seed": ', "[1]", '{"model": {"widht": 3}}', '{"model": {"channel_mult": 3}}', ""]
)
@pytest.mark.parametrize("given", [[], ["--config", DIGITS]], ids=["alone", "with_config"])
def test_workdir_with_a_damaged_config_is_refused(cli, tmp_path, workdir, trained, given, text):
    workdir.mkdir()
    (workdir / "config.json").write_text(text)
    assert_refused(cli, tmp_path, ["--workdir", workdir, *given], "config.json")


@pytest.mark.parametrize("mode", ["sample", "nll"])
@pytest.mark.parametrize("exists", [True, False])
def test_empty_workdir_has_no_run_to_use(cli, tmp_path, workdir, mode, exists):
    if exists:
        workdir.mkdir()
    arguments = ["--workdir", workdir, "--mode", mode]
    assert_refused(cli, tmp_path, arguments, str(workdir), "holds no run")


@pytest.mark.parametrize("mode", ["sample", "nll"])
@pytest.mark.parametrize("given", [[], ["--config", DIGITS]], ids=["alone", "with_config"])
def test_workdir_without_checkpoints_is_refused(cli, tmp_path, workdir, mode, given):
    store_run(workdir)
    arguments = ["--workdir", workdir, "--mode", mode, *given, "--config.sample.count=4"]
    assert_refused(cli, tmp_path, arguments, "holds no checkpoint", "--mode train")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--checkpoint", "best"], ["--checkpoint is for", "leave it out"]),
        (["--mode", "sample", "--checkpoint", "worst"], ["'worst'", "best, or a step"]),
        (["--mode", "nll", "--checkpoint", "-1"], ["--checkpoint"]),
    ],
)
def test_checkpoint_flag_is_checked(cli, tmp_path, workdir, flags, words):
    store_run(workdir)
    assert_refused(cli, tmp_path, ["--workdir", workdir, *flags], *words)


@pytest.mark.parametrize("mode", ["sample", "nll"])
def test_new_workdir_with_a_config_holds_no_checkpoints(cli, tmp_path, workdir, mode):
    arguments = ["--config", DIGITS, "--workdir", workdir, "--mode", mode]
    assert_refused(cli, tmp_path, arguments, "holds no checkpoint", "--mode train")


@pytest.mark.parametrize(
    "override, words",
    [
        ("sample.steps=abc", ["sample.steps", "'abc'"]),
        ("sample.ema_rate=0.5", ["sample.ema_rate is 0.5", "(0.99,)"]),
        ("sample.sampler=euler", ["sample.sampler"]),
        ("sample.colour=red", ["'sample.colour'"]),
        ("train.steps=0", ["train.steps"]),
    ],
)
def test_bad_value_for_a_stored_run_is_refused(cli, tmp_path, workdir, override, words):
    store_run(workdir)
    arguments = ["--workdir", workdir, "--mode", "sample", f"--config.{override}"]
    assert_refused(cli, tmp_path, arguments, *words)


def test_training_stores_the_config_with_its_overrides(cli, workdir, trained):
    code, _, err = cli(
        f"--config={DIGITS}:l_vlb,linear",
        f"--workdir={workdir}",
        "--config.train.steps=5",
        "--config.model.channel_mult=(1, 1)",
        "--config.model.remat=blocks",
        "--config.train.learning_rate",
        "3e-4",
    )
    assert (code, err) == (0, "")
    stored = configs.load(workdir / "config.json")
    assert stored.to_dict() == trained[0].to_dict()
    expected = digits()
    expected.loss.name = "l_vlb"
    expected.loss.timesteps = "importance"
    expected.diffusion.schedule = "linear"
    expected.train.steps = 5
    expected.train.learning_rate = 3e-4
    expected.model.channel_mult = (1, 1)
    expected.model.remat = "blocks"
    assert stored.to_dict() == expected.to_dict()


def test_last_of_two_overrides_counts(cli, workdir, trained):
    arguments = ["--config.train.steps=5", "--config.train.steps=6"]
    code, _, err = cli("--config", DIGITS, "--workdir", workdir, *arguments)
    assert (code, err) == (0, "")
    assert trained[0].train.steps == 6


def test_looking_at_the_data_starts_no_run(cli, workdir, monkeypatch):
    monkeypatch.setattr(inspection, "_SECONDS", 0.1)
    code, out, err = cli("--config", DIGITS, "--workdir", workdir, "--mode", "data")
    assert code == 0, err
    assert "train: 1,438 pictures" in out and str(workdir / "data" / "test.png") in out
    written = {path.relative_to(workdir).as_posix() for path in workdir.rglob("*")}
    assert written == {"data", "data/training.png", "data/test.png"}


@pytest.mark.parametrize("name", ["digits", "folder:/a/b c", "tfds:cifar10", "npz:" + "/ab" * 99])
def test_any_name_of_data_fits_into_the_name_of_a_file(name):
    run = SimpleNamespace(config=configs.base())
    run.config.data.name = name
    word = names.data_word(run)
    assert re.fullmatch(r"[\w-]{1,60}", word)
    assert word == name if name == "digits" else word != name
    run.config.data.name = name + "x"
    assert names.data_word(run) != word


def test_stored_run_may_look_at_other_data(cli, workdir):
    stored = store_run(workdir)
    mode = ["--workdir", workdir, "--mode", "data"]
    code, out, err = cli(*mode, "--config.data.name=npz:none", "--config.data.random_crop=0.8")
    assert code == 2 and "none does not exist" in err
    assert (workdir / "config.json").read_bytes() == stored


@pytest.mark.parametrize("given", [[], ["--config", DIGITS]], ids=["alone", "with_config"])
def test_matching_workdir_is_continued(cli, workdir, trained, given):
    stored = store_run(workdir)
    code, _, err = cli("--workdir", workdir, *given)
    assert (code, err) == (0, "")
    assert trained[0].to_dict() == digits().to_dict()
    assert (workdir / "config.json").read_bytes() == stored


@pytest.mark.parametrize("given", [[], ["--config", DIGITS]], ids=["alone", "with_config"])
def test_matching_workdir_takes_new_values_of_free_keys(cli, workdir, trained, given):
    store_run(workdir)
    flags = ["--config.train.steps=900", "--config.sample.count=7", "--config.nll.terms=3"]
    code, _, err = cli("--workdir", workdir, *given, *flags)
    assert (code, err) == (0, "")
    stored = configs.load(workdir / "config.json")
    assert (stored.train.steps, stored.sample.count, stored.nll.terms) == (900, 7, 3)
    assert stored.model.to_dict() == digits().model.to_dict()


def test_devices_are_the_cores_that_share_every_batch(
    cli, workdir, trained, configured, monkeypatch
):
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 8)
    # Batches of 128 and 516; each device draws samples for itself.
    flags = ["--config.nll.batch_size=516", "--config.sample.batch_size=25"]
    assert cli("--config", DIGITS, "--workdir", workdir, *flags)[0] == 0
    assert configured == [(4, runtime.cache_folder())]


def test_devices_share_a_microbatch_too(cli, workdir, trained, configured, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 4)
    flags = ["--config.train.microbatches=64"]
    assert cli("--config", DIGITS, "--workdir", workdir, *flags)[0] in (0, 2)
    assert configured[0][0] == 2  # 128 / 64 images at a time


@pytest.mark.parametrize(
    "variable, flag, devices", [("2", [], 2), (None, ["--devices=3"], 3), ("2", ["--devices=1"], 1)]
)
def test_devices_can_be_chosen(
    cli, workdir, trained, configured, monkeypatch, variable, flag, devices
):
    if variable:
        monkeypatch.setenv("DEVICES", variable)
    assert cli("--config", DIGITS, "--workdir", workdir, *flag)[0] == 0
    assert configured[0][0] == devices


def test_bad_config_is_refused_before_jax_is_set_up(cli, tmp_path, workdir, configured):
    arguments = ["--config", DIGITS, "--workdir", workdir, "--config.train.steps=0"]
    assert_refused(cli, tmp_path, arguments, "train.steps")
    assert configured == []


def test_diverged_run_ends_with_exit_code_1(cli, workdir, monkeypatch):
    def train(config, *_):
        raise DivergedError("the loss is not finite at step 7")

    monkeypatch.setattr(loop, "train", train)
    code, out, err = cli("--config", DIGITS, "--workdir", workdir)
    assert (code, out, err) == (1, "", "error: the loss is not finite at step 7\n")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_modes_flags_and_variants(cli, tmp_path, configured, flag):
    code, out, err = cli("--mode", "fly", flag)
    assert (code, err) == (0, "")
    for word in ("--config", "--workdir", "--mode", "--devices", *variants.COMMON):
        assert word in out
    for mode in arguments.MODES:
        assert f"\n  {mode} " in out
    assert max(map(len, out.splitlines())) <= 100
    assert configured == []


def run_python(*arguments):
    """(exit code, stdout, stderr) of a Python of its own in the repository."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_and_refusals_do_not_wait_for_jax(workdir):
    script = f"""
import sys
from iddpm_jax import main
run = ["main", "--config", "{DIGITS}", "--workdir", r"{workdir}"]
bad = [["main", "--help"], [*run, "--config.seeed=1"], [*run, "--config.train.steps=0"]]
codes = [main.main(arguments) for arguments in bad]
heavy = sorted({{"jax", "flax", "optax", "grain", "orbax", "sklearn"}} & set(sys.modules))
sys.exit(f"{{codes}} {{heavy}}")
"""
    code, _, err = run_python("-c", script)
    assert code == 1
    assert err.splitlines()[-1] == "[0, 2, 2] []"


def test_module_prints_help():
    code, out, err = run_python("-m", "iddpm_jax.main", "--help")
    assert (code, err) == (0, "")
    assert "Modes" in out


def test_module_refuses_in_one_line(workdir):
    code, out, err = run_python(
        "-m", "iddpm_jax.main", "--config", DIGITS, "--workdir", workdir, "--config.train.step=3"
    )
    assert (code, out) == (2, "")
    assert err == ("error: there is no config key 'train.step'; did you mean 'train.steps'?\n")
    assert not workdir.exists()


@pytest.mark.slow
def test_batch_that_the_chosen_devices_cannot_share_is_refused(workdir):
    code, out, err = run_python(
        "-m", "iddpm_jax.main", "--config", DIGITS, "--workdir", workdir, "--devices", 3
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "3 devices" in err
    assert not workdir.exists()
