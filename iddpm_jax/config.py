"""Every setting, with its unit and the paper's value; storing and comparing configs."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from iddpm_jax.errors import InputError


def base() -> ConfigDict:
    """The config that every file in configs/ starts from: the paper's CIFAR-10 model.

    Returns:
        ConfigDict with every key there is. Only `train.steps` has no usable default.
    """
    c = ConfigDict()
    c.seed = 0  # of parameters, data order, timesteps, noise and dropout

    # A workdir or a file of weights (.pt, .safetensors) whose parameters a new run starts from;
    # step, averages, optimizer, and the embedding of other classes, are new. "": all is new
    c.init_from = ""

    c.data = ConfigDict()
    # "digits" (8x8 grey, 10 classes), "emoji" (32x32 colour, 9 classes);
    # "folder:PATH": pictures, also in subfolders; subfolders train and test (or val) are the
    #   splits, else every tenth picture is for testing;
    # "tfds:NAME", or "tfds:PATH" of one version: a TFDS data set prepared as array_record;
    # "npz:PATH": a file of arr_0 (uint8 [N, H, W, C]) and arr_1 (classes), of which every tenth is
    #   for testing, or a folder of train.npz and test.npz
    c.data.name = "emoji"
    # (height, width, channels) of the images; (): as the data has. Larger arrays are averaged down;
    # pictures of folders and TFDS are halved, resized (bicubic) and cropped to it, as OpenAI's are
    c.data.image_shape = ()
    c.data.num_classes = 0  # classes of the data; 0: as the data has
    c.data.random_flip = (
        False  # mirror training images left to right at random; never in evaluation
    )
    # Smallest share of a picture's shorter side that a random crop keeps, in training only;
    # guided-diffusion's is 0.8; 0: no random crops
    c.data.random_crop = 0.0
    # Class of a picture in a folder: its "folders" (the first below the data's), "prefix" of its
    # name (up to the first underscore, as OpenAI's), "none"; "auto" finds out
    c.data.labels = "auto"
    c.data.corrupt = "fail"  # a file that is no picture: "fail", or "skip" to take the next one
    c.data.tfds_dir = ""  # folder of TFDS data sets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets
    # Keep the training split on every device: each step draws its own images and flips there, in an
    # order of its own. For small pictures on accelerators; without random crops
    c.data.resident = False
    c.data.num_threads = 2  # that read pictures, a batch each; about as many as cores
    c.data.prefetch_batches = 8  # batches read ahead, in memory

    c.diffusion = ConfigDict()
    c.diffusion.T = 4000  # number of steps; paper: 4000, and 1000 for comparison
    c.diffusion.schedule = "cosine"  # "cosine" (section 3.2) or "linear" (Ho et al. 2020)
    c.diffusion.mean = "eps"  # the network predicts "eps", "x_0" or "prev_mean"
    # "learned_range" (equation 15), "learned" (log-variance), "fixed_small" (beta_tilde) or
    # "fixed_large" (beta)
    c.diffusion.variance = "learned_range"
    c.diffusion.rescale_timesteps = True  # feed the network t * 1000 / T instead of t

    c.loss = ConfigDict()
    c.loss.name = "l_hybrid"  # "l_simple" (equation 14), "l_hybrid" (16) or "l_vlb" (4)
    c.loss.vlb_weight = 0.001  # lambda of L_hybrid = L_simple + lambda L_vlb; paper: 0.001
    # Steps t are drawn "uniform" or by "importance", p_t ~ sqrt(E[L_t^2]) (equation 18; the paper
    # uses it for L_vlb)
    c.loss.timesteps = "uniform"
    c.loss.history_size = 10  # losses remembered per step; paper: 10
    c.loss.uniform_share = 0.001  # share of draws that stays uniform under importance sampling

    c.model = ConfigDict()
    c.model.width = 128  # channels that channel_mult multiplies
    c.model.channel_mult = (1, 2, 2, 2)  # channels of each level over width; each halves the size
    c.model.num_res_blocks = 3  # residual blocks per level
    c.model.attention_resolutions = (16, 8)  # sizes (shorter side, pixels) with attention
    c.model.num_heads = 4
    c.model.num_heads_upsample = 0  # heads in the decoder; 0: as num_heads
    c.model.num_head_channels = 0  # channels of a head; above 0 it decides the numbers of heads
    # Channels of q, k, v in a projection: "heads_first" (improved diffusion), "qkv_first" (the new
    # order of guided diffusion)
    c.model.attention_order = "heads_first"
    c.model.class_conditional = False  # tell the network the class of each image
    # Share of training images whose class is kept from the network, so that sample.guidance can
    # be used; Ho & Salimans 2022: 0.1 to 0.2
    c.model.label_dropout = 0.0
    # Super-resolution: shorter side of the small image that the network sees, pixels; 0: none
    c.model.low_res_size = 0
    c.model.dropout = 0.0  # paper: 0.3 on CIFAR-10, 0 on ImageNet-64
    c.model.scale_shift_norm = True  # condition by scale and shift (the paper's); else by adding
    c.model.conv_resample = True  # resample with a convolution; else averages and repetition
    c.model.resblock_updown = False  # resample inside residual blocks (guided diffusion)
    # What the backward pass computes again to save memory: "none"; "elementwise", all but products,
    # statistics and dropout masks; "blocks", all but the inputs of the blocks, a third more work
    c.model.remat = "none"
    # How 3x3 convolutions are computed: "plain", as XLA does; "cpu", in float32 with gradients
    # that CPUs compute faster, and from 128 channels on by fewer products; or "auto": "cpu" on CPUs
    c.model.convolution = "auto"
    # "float32", "bfloat16", "float16" (trained under a loss scale), or "auto": bfloat16 on TPU and
    # GPU, float32 on CPUs
    c.model.dtype = "auto"

    c.train = ConfigDict()
    c.train.steps = 0  # optimizer steps; must be given. Paper: 500,000 on CIFAR-10
    c.train.batch_size = 128  # images per optimizer step, over all devices; paper: 128
    c.train.microbatches = 1  # parts that a device takes its share in, one after the other
    # Optimizer steps in one call of the compiled program, for accelerators whose step is shorter
    # than the host's part of it; train.steps and every ..._every_steps are multiples of it
    c.train.steps_per_dispatch = 1
    # Devices that hold one copy of parameters, averages and optimizer state between them; 1: every
    # device holds all of it
    c.train.fsdp = 1
    c.train.learning_rate = 1e-4  # of Adam; paper: 1e-4
    c.train.learning_rate_decay = "constant"  # "constant", or "linear" to 0 at train.steps
    c.train.warmup_steps = 0  # steps over which the rate rises from 0
    c.train.weight_decay = 0.0  # decoupled (AdamW)
    c.train.gradient_clip = (
        0.0  # largest global L2 norm of the gradient; 0: off, the paper's choice
    )
    c.train.ema_rates = (0.9999,)  # decay per step of each running average of the parameters
    # Super-resolution: largest standard deviation of the noise on small images, drawn evenly for
    # each (conditioning augmentation); images run from -1 to 1
    c.train.low_res_noise = 0.0
    c.train.log_every_steps = 100  # write metrics and update the curves
    c.train.sample_every_steps = 10000  # write a grid of samples; 0: never
    c.train.checkpoint_every_steps = 10000  # save; the end is always saved
    # A run in which no step has ended for so long has hung, and ends with exit code 1; 0: never
    c.train.hang_seconds = 600
    c.train.keep_checkpoints = 2  # newest checkpoints kept
    c.train.keep_best = 1  # and so many of the lowest bits/dim, where they are measured on the way
    c.train.keep_every_steps = 0  # and those at multiples of this step, for good; 0: none
    # Measure bits/dim and save; 0: never. The average and the number of terms per image are those
    # of nll below
    c.train.evaluate_every_steps = 0
    c.train.evaluate_images = 256  # images of nll.split that this looks at, spread evenly

    c.sample = ConfigDict()
    c.sample.count = 64  # images; under super-resolution every image of sample.base counts
    c.sample.steps = "250"  # "" for all T, "250", "10,15,20" per section, or "ddim50"
    # Share of these steps left out where the reverse process begins: it starts from N(0, I) at the
    # step reached, which loses little with the linear schedule (section 3.2)
    c.sample.skip = 0.0
    c.sample.sampler = "ancestral"  # or "ddim"
    c.sample.variance = ""  # "fixed_small" or "fixed_large" in place of the model's own (ancestral)
    c.sample.eta = 0.0  # noise in DDIM: 0 none, 1 as much as ancestral
    c.sample.classes = ()  # classes to choose from, such as (0, 3, 3); (): all there are
    c.sample.class_choice = "balanced"  # take the classes in turn; or "random": draw them
    # Classifier-free guidance: 1 none, more sharpens the class; needs model.label_dropout
    c.sample.guidance = 1.0
    # Super-resolution: .npz of small images (--base); "": small versions of the test images
    c.sample.base = ""
    c.sample.low_res_noise = 0.0  # standard deviation of the noise on small images
    c.sample.ema_rate = 0.9999  # which average of the parameters; 0 for the parameters themselves
    # Images at a time on each device; a sample's last bits depend on it, but not on how many
    # devices there are. Accelerators are faster with more
    c.sample.batch_size = 16
    c.sample.clip_x_0 = True  # clip predicted images to [-1, 1] at every step
    c.sample.seed = 0  # sample i depends on (seed, i) alone
    c.sample.png = False  # write every image as a PNG of its own as well
    # Also draw a film of the first samples as they form out of noise, and of the x_0 predicted on
    # the way
    c.sample.film = False

    c.nll = ConfigDict()
    c.nll.split = "test"
    c.nll.steps = ""  # as sample.steps; "" gives the bound of all T steps
    c.nll.terms = 0  # steps t evaluated per image, spread evenly at random; 0: every one
    c.nll.draws = 1  # of the noise, for every image and step that is evaluated
    c.nll.ema_rate = 0.9999  # as sample.ema_rate
    # Averages measured in one pass, on the same noise, 0 for the parameters themselves; (): only
    # nll.ema_rate
    c.nll.ema_rates = ()
    c.nll.batch_size = 256  # (image, t) pairs at a time, over all devices
    c.nll.clip_x_0 = True  # as OpenAI's evaluation; training never clips
    c.nll.seed = 0

    c.fid = ConfigDict()
    # .npz of samples, or of their statistics (--samples); "": those that sample above describes,
    # which are drawn unless they are there
    c.fid.samples = ""
    # .npz of images, or of statistics (--reference); "": a split of the data, fid.split
    c.fid.reference = ""
    c.fid.split = "train"  # paper: the whole training set
    # "inception" (FID), "digits" or "emoji" (small ones of our own; FD-digits, FD-emoji), or
    # "auto": the data's own, else inception
    c.fid.network = "auto"
    # Inception-v3's weights: pytorch-fid's or torch-fidelity's .pth, or .npz; "": where
    # python -m iddpm_jax.evaluation.inception --download puts them
    c.fid.weights = ""
    # Resizing and scaling of images for Inception: "pytorch_fid", or "tensorflow" (torch-fidelity,
    # guided-diffusion's evaluator)
    c.fid.preprocessing = "pytorch_fid"
    c.fid.neighbours = 3  # k of precision and recall; paper: 5, guided-diffusion's evaluator: 3
    c.fid.manifold_images = 10000  # images, of each side, that precision and recall look at
    c.fid.kid_subsets = 100  # random subsets that KID is averaged over
    c.fid.kid_subset_size = 1000  # images in each, or as many as there are
    c.fid.resamples = 20  # parts left out in turn (jackknife) for the errors of distances; 0: none
    c.fid.batch_size = 64  # images at a time, over all devices
    c.fid.seed = 0  # of subsets and resampling

    c.gradients = ConfigDict()
    # Independent batches of training images, drawn with replacement, for each objective and way of
    # drawing t; more make errors smaller
    c.gradients.batches = 100
    c.gradients.batch_size = 64  # images in each, over all devices
    c.gradients.seed = 0  # of images, t, noise and dropout
    return c.lock()


def flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every (dotted key, value) of a config."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# Elements of tuples; of the rest, whole numbers.
_TUPLES_OF = {
    "train.ema_rates": (float,),
    "nll.ema_rates": (int, float),
    "model.channel_mult": (int, float),
}


def check_type(key: str, value: object, default: object) -> None:
    """Refuse a value that is not of its key's kind.

    Raises:
        InputError: names the kind, and the default as an example.
    """
    if isinstance(default, tuple):
        kinds = _TUPLES_OF.get(key, (int,))
        ok = isinstance(value, tuple | list) and all(type(v) in kinds for v in value)
        wanted = {(int,): "whole numbers", (float,): "fractions"}.get(kinds, "numbers")
        wanted = f"a tuple of {wanted}"
    elif isinstance(default, float):
        ok = type(value) in (int, float) and abs(value) < float("inf")
        wanted = "a finite number"
    else:
        ok = type(value) is type(default)
        wanted = {int: "a whole number", bool: "true or false", str: "a word"}[type(default)]
    if not ok:
        raise InputError(f"{key} is {value!r}; it must be {wanted}, such as {default!r}")


CONVERTED = "converted.json"
"""File in a workdir whose weights came from files: where from, and at which step."""

# Empty, these take what the data have; a workdir has them filled in.
FROM_DATA = ("data.image_shape", "data.num_classes")

# How data are read, not what they are.
_READING = ("data.corrupt", "data.tfds_dir", "data.num_threads", "data.prefetch_batches")

# A run may go on with other values of these; any other change makes it another run.
FREE_ON_RESUME = (
    *"sample. nll. fid. gradients. train.steps train.keep_ train.evaluate_ train.fsdp".split(),
    "train.hang_seconds",
    "model.convolution",
    *_READING,
)

# Samples and likelihoods do not ask which data the run was trained on, nor in which precision.
FREE_ON_READING = (*FREE_ON_RESUME, "data.name", "data.labels", "model.dtype", "model.remat")

# Converted weights that have not been trained here yet may be fine-tuned as one likes, short of
# what would change the arrays of the train state.
FREE_AFTER_CONVERSION = (
    *FREE_ON_RESUME,
    *"seed data.name data.labels data.random_flip data.random_crop data.resident".split(),
    *"model.dropout model.remat loss.vlb_weight".split(),
    *"train.batch_size train.microbatches train.learning_rate train.warmup_steps".split(),
    *"train.weight_decay train.low_res_noise loss.uniform_share".split(),
)


def differences(
    old: ConfigDict, new: ConfigDict, free: tuple[str, ...] = FREE_ON_RESUME
) -> list[str]:
    """What keeps a run under `old` from going on under `new`: lines "key: old -> new".

    Args:
        old, new: configs; "as the data has" in the new one agrees with what the run found.
        free: keys that may differ, or beginnings of them, which end in "." or "_".
    """
    before = dict(flat(old))
    free = (*free, *(key for key in FROM_DATA if not dict(flat(new))[key]))
    beginnings = tuple(key for key in free if key.endswith((".", "_")))
    return [
        f"{key}: {before[key]} -> {value}"
        for key, value in flat(new)
        if value != before[key]
        and key not in free
        and not key.startswith(beginnings)
        and not key.endswith("_every_steps")
    ]


def save(config: ConfigDict, path: Path) -> None:
    """Write a config as JSON: all of it or, if killed on the way, nothing."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    unfinished.replace(path)


def load(path: Path) -> ConfigDict:
    """Read a config written by save; keys added to base() since then take their defaults.

    Args:
        path: a config.json.

    Returns:
        ConfigDict with every key of base().

    Raises:
        InputError: unreadable, or with keys that no longer exist.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a config ({error})") from None
    return loads(text, path)


def loads(text: str, path: Path) -> ConfigDict:
    """As load, from JSON text; the path it comes from is for messages."""
    try:
        stored = ConfigDict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a config ({error})") from None
    config = base()
    defaults = dict(flat(config))
    for key, value in flat(stored):
        if key not in defaults:
            raise InputError(f"{path} has a key {key!r} that does not exist{suggestion(key)}")
        if isinstance(defaults[key], tuple) and isinstance(value, list):
            value = tuple(value)
        if key == "model.remat" and isinstance(value, bool):  # what it was before there were words
            value = "blocks" if value else "none"
        try:
            check_type(key, value, defaults[key])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        config.update_from_flattened_dict({key: value})
    return config


def suggestion(key: str) -> str:
    """ "; did you mean ...?" for a misspelled key, or ""."""
    close = difflib.get_close_matches(key, [k for k, _ in flat(base())], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
