#!/usr/bin/env bash
# Submit a run to Slurm, on one node or several. `launch/slurm.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train under Slurm: one process per GPU on each node, or one per node where there are none.

  launch/slurm.sh [--nodes N] [--gpus_per_node N] [--cpus_per_task N] [--time TIME]
                  [--partition NAME] [--account NAME] [--dry_run]
                  -- ARGUMENTS of python -m iddpm_jax.main

Flags
  --nodes          how many (default 1)
  --gpus_per_node  GPUs of each (default 0: trains on CPUs)
  --cpus_per_task  CPU cores of each process (default: the cluster's)
  --time           limit, as sbatch takes it, such as 1-00:00:00 (default: the partition's)
  --partition      as sbatch takes it
  --account        as sbatch takes it; what else it knows can be set as SBATCH_... variables
  --dry_run        print the command and run nothing

Example, from the root of a checkout, with its environment active:
  launch/slurm.sh --nodes 2 --gpus_per_node 8 --time 1-00:00:00 -- \
    --config configs/imagenet64.py --workdir /shared/runs/imagenet64

The workdir must be seen by all nodes. Five minutes before the time limit the run saves, and the job
goes back into the queue and continues from there. `scancel -b -s TERM JOB` saves and ends it;
`scancel JOB` ends it within the cluster's KillWait (30 s as a rule). Between SIGTERM and SIGKILL
lie GRACE_SECONDS (default 120). PYTHON names the interpreter.
TEXT
}

die() {
  echo "error: $1; see launch/slurm.sh --help" >&2
  exit 2
}

nodes=1 gpus_per_node=0 cpus_per_task='' time='' partition='' account='' dry_run=''
while (($#)); do
  case $1 in
    --help | -h) usage; exit ;;
    --) shift; break ;;
    --dry_run) dry_run=yes; shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --nodes | --gpus_per_node | --cpus_per_task | --time | --partition | --account)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) die "'$1' is not known; arguments of iddpm_jax.main go after --" ;;
  esac
done
(($#)) || die "arguments of iddpm_jax.main are missing; they go after --"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || die "--nodes is '$nodes'; it must be at least 1"
[[ $gpus_per_node =~ ^[0-9]+$ ]] || die "--gpus_per_node is '$gpus_per_node'; it must be a number"

# Per node, not per task: JAX gives process i of a node its GPU i, so each has to see them all.
command=(sbatch --nodes="$nodes" --ntasks-per-node="$((gpus_per_node > 0 ? gpus_per_node : 1))")
((gpus_per_node == 0)) || command+=(--gpus-per-node="$gpus_per_node")
[[ ! $cpus_per_task ]] || command+=(--cpus-per-task="$cpus_per_task")
[[ ! $time ]] || command+=(--time="$time")
[[ ! $partition ]] || command+=(--partition="$partition")
[[ ! $account ]] || command+=(--account="$account")
command+=("$(dirname "${BASH_SOURCE[0]}")/slurm.sbatch" "$@")
if [[ $dry_run ]]; then
  printf -v words '%q ' "${command[@]}"
  echo "${words% }"
else
  "${command[@]}"
fi
