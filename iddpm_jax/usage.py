"""What --help prints."""

HELP = """\
Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal 2021).

  python -m iddpm_jax.main --config FILE[:VARIANT,...] --workdir FOLDER [--mode MODE]
                           [--config.KEY=VALUE ...]

Modes
  train   (default) train, or continue from the workdir's newest checkpoint; at the end draw
          samples and measure bits/dim
  sample  draw samples from a trained workdir
  nll     measure bits/dim on the test split, term by term
  fid     measure samples against pictures: Frechet distances, Inception Score, KID, precision,
          recall; with the workdir's model, which draws what is missing, or of two .npz files
  convert weights in files (OpenAI's .pt, or .safetensors) -> workdir, and back
  data    show the data as the network will see them: counts, classes, values, labelled pictures
          in the workdir's data/, images/s; with --statistics, write what fid compares with
  figures draw the paper's figures from what the workdir holds (PNG, SVG, numbers, captions in
          its figures/); what is not there yet is left out, with the reason
  plan    what a config would cost on a TPU slice that is not there: memory, FLOPs, step time

Examples
  Train on the built-in digits:
    python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits
  The same with L_vlb, importance sampling and the linear schedule:
    python -m iddpm_jax.main --config configs/digits.py:l_vlb,linear --workdir runs/vlb
  Change anything; every key is described in iddpm_jax/config.py:
    ... --config.train.steps=5000 --config.model.width=64
  100 samples of the digits 3 and 8 by 25 steps of DDIM; the workdir knows its own config:
    python -m iddpm_jax.main --workdir runs/digits --mode sample \\
      --config.sample.count=100 --config.sample.classes='(3, 8)' \\
      --config.sample.sampler=ddim --config.sample.steps=25
  A film of the first samples forming out of noise, film.png beside the grid:
    python -m iddpm_jax.main --workdir runs/digits --mode sample --config.sample.film=true
  The bound over all T steps, and the same model with 100 steps:
    python -m iddpm_jax.main --workdir runs/digits --mode nll --config.nll.terms=0
    python -m iddpm_jax.main --workdir runs/digits --mode nll --config.nll.steps=100
  What 1,000 samples are worth; the same of any two files, by Inception-v3 and the paper's k = 5:
    python -m iddpm_jax.main --workdir runs/digits --mode fid --config.sample.count=1000
    python -m iddpm_jax.main --mode fid --samples SAMPLES.npz --reference REFERENCE.npz \\
      --config.fid.neighbours=5
  The paper's figures for this run, and beside those of another, with its tables:
    python -m iddpm_jax.main --workdir runs/digits --mode figures
    python -m iddpm_jax.main --workdir runs/digits --mode figures --with runs/vlb
  OpenAI's CIFAR-10 model, downloaded before; then sample, nll and train work in its workdir:
    python -m iddpm_jax.main --mode convert --source cifar10_uncond_50M_500K.pt \\
      --config configs/cifar10.py:official --workdir runs/official
  What was trained here, for OpenAI's code (model.pt, ema.pt), or without torch:
    python -m iddpm_jax.main --mode convert --workdir runs/digits --target weights
    python -m iddpm_jax.main --mode convert --workdir runs/digits --target weights \\
      --format safetensors
  A look at your own pictures before training on them; CIFAR-10, once, to train on it:
    python -m iddpm_jax.main --config configs/emoji.py --workdir runs/mine --mode data \\
      --config.data.name=folder:PATH --config.data.image_shape='(32, 32, 3)'
    python -m iddpm_jax.data.cifar10 --download
  A cascade: the samples of one model, enlarged by a super-resolution model:
    python -m iddpm_jax.main --workdir runs/large --mode sample --base SAMPLES.npz
  Whether the paper's CIFAR-10 model fits on four TPU v5e chips, and how fast it can be:
    python -m iddpm_jax.main --mode plan --config configs/cifar10.py --topology v5e:2x2

Flags
  --config     a file in configs/, with variants after a colon: l_simple, l_hybrid, l_vlb, linear,
               cosine, T1000, T4000, and those of the file. May be left out where the workdir
               holds a run.
  --workdir    folder of the run: its config, checkpoints, curves, samples and results; plan needs
               none
  --mode       train, sample, nll, fid, convert, data, figures or plan
  --source     convert: a file of weights, or a folder with model*.pt and ema_*.pt
  --target     convert: a folder to write weights to
  --format     convert: pt (default) or safetensors
  --checkpoint sample, nll, fid, convert --target: best (lowest bits/dim of those measured in
               training) or the step of a checkpoint; the newest by default
  --base       sample: .npz of small images for a super-resolution model (config.sample.base)
  --samples    fid: .npz of pictures, or of their statistics, in place of the model's samples
               (config.fid.samples)
  --reference  fid: .npz of pictures or statistics, such as guided-diffusion's reference batches, in
               place of the data's training split (config.fid.reference)
  --statistics data: .npz to write the statistics of the data's fid.split to
  --with       figures: other workdirs, with commas between, whose results are drawn beside this
               one's
  --topology   plan: chip and shape of the slice, such as v5e:2x2, v6e:4x4, v5p:2x2x2 or v4:2x2x1
  --part       plan: train (the training step), sample (the sampler) or all (default)
  --devices    virtual devices on a CPU, one per core by default (also: DEVICES=2)
  --coordinator HOST:PORT --num_processes N --process_id I
               one of several processes that train together: where process 0 listens, how many
               there are, and which one this is. See launch/.
  --distributed
               several processes that JAX finds itself, as on a TPU pod. Slurm tasks are found
               without it.
  --help       this text

Bad input ends with one line and exit code 2, a loss that is not finite with exit code 1.
"""
