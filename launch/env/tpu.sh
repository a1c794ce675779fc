# shellcheck shell=bash
# libtpu's flags, each with its reason; other devices ignore them. The launchers source this where
# there is no nvidia-smi; by hand: `source launch/env/tpu.sh`. What is set already stays, and wins: of
# a flag given twice the last is taken.
flags=(
  # All-reduces of gradients run beside the backward pass, those of unlike sizes too.
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
  # Collectives are done in the background of other operations, over several of them, also the
  # gathering of parameters under train.fsdp.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
)
export LIBTPU_INIT_ARGS="${flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
unset flags
