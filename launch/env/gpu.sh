# shellcheck shell=bash
# XLA's flags for GPUs, each with its reason. The launchers source this where nvidia-smi is; by hand:
# `source launch/env/gpu.sh`. What is set already stays, and wins: of a flag given twice XLA takes
# the last.
flags=(
  # The all-reduce of the gradients of the last layers runs beside the backward pass of the first.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # A network has hundreds of small gradients. All-reduces of 64 MiB (by default 30) are large enough
  # for the links, and the first of them can still begin early.
  --xla_gpu_all_reduce_combine_threshold_bytes=67108864
  # The same where train.fsdp gathers the parameters before the step.
  --xla_gpu_all_gather_combine_threshold_bytes=67108864
)
export XLA_FLAGS="${flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
unset flags
# JAX takes 75% of the memory at the start, and no more later; nothing else runs on these GPUs.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
# Left alone, as their defaults are what these networks want: autotuning (it picks the kernels of
# convolutions), Triton for matrix products (autotuned against cuBLAS), and command buffers, which
# start many small kernels at once.
