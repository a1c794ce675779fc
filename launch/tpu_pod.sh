#!/usr/bin/env bash
# A run on a TPU pod, from create to delete. `launch/tpu_pod.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on a TPU pod (or a single TPU VM) of Google Cloud, from this machine. docs/tpu.md walks
through one run.

  launch/tpu_pod.sh VERB --name NAME --zone ZONE [FLAGS] [-- ARGUMENTS of python -m iddpm_jax.main]

Verbs
  create   ask for the pod (--type; --queued waits in line for it, --spot is cheap and can be taken)
  status   its state: READY, or ACTIVE with --queued, means that it can be used
  install  this checkout, as committed, and its dependencies on all workers; mounts --share
  run      start ARGUMENTS on all workers, in the background
  logs     show the log of a worker as it grows; Ctrl-C ends the showing, not the run
  stop     SIGTERM on all workers, on which they save and end; SIGKILL after --grace
  delete   give the pod back, with all that is on its disks. Until then it costs money

Flags
  --name     of the pod
  --zone     such as us-west4-a
  --project  of Google Cloud (default: gcloud's)
  --type     create: accelerator type, such as v5litepod-16, v6e-16, v4-32
  --version  create: runtime version (default: by the type)
  --spot     create: a spot pod
  --queued   create, status, delete: through a queued resource of the same name
  --share    install: what all workers see as share/: a bucket's name, or SERVER:/EXPORT of an NFS
  --worker   logs: which worker (default 0, the one that prints)
  --grace    stop: seconds between SIGTERM and SIGKILL (default 120)
  --dry_run  print the commands and run none

Example
  pod=(--name iddpm --zone us-west4-a)
  launch/tpu_pod.sh create "${pod[@]}" --type v5litepod-16 --spot
  launch/tpu_pod.sh install "${pod[@]}" --share my-bucket
  launch/tpu_pod.sh run "${pod[@]}" -- --config configs/emoji.py --workdir share/runs/emoji
  launch/tpu_pod.sh logs "${pod[@]}"
  launch/tpu_pod.sh stop "${pod[@]}"
  launch/tpu_pod.sh delete "${pod[@]}"
TEXT
}

die() {
  echo "error: $1; see launch/tpu_pod.sh --help" >&2
  exit 2
}

call() {
  local words
  printf -v words '%q ' "$@"
  if [[ $dry_run ]]; then echo "${words% }"; else "$@"; fi
}

# Run the words $2... on worker $1: quoted here, because a shell over there reads them again.
on_worker() {
  local words
  printf -v words '%q ' "${@:2}"
  call "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="${words% }"
}

runtime_version() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  [[ $type ]] || die "--type is missing, such as v5litepod-16"
  local kind=(--accelerator-type="$type" "${where[@]}")
  [[ ! $spot ]] || kind+=(--spot)
  version=${version:-$(runtime_version)}
  if [[ $queued ]]; then
    call "${tpus[@]}" queued-resources create "$name" --node-id="$name" \
      --runtime-version="$version" "${kind[@]}"
  else
    call "${tpus[@]}" tpu-vm create "$name" --version="$version" "${kind[@]}"
  fi
}

status() {
  if [[ $queued ]]; then
    call "${tpus[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
  else
    call "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" --format='value(state)'
  fi
}

install() {
  [[ -z $(git status --porcelain) ]] || echo "note: what is not committed stays here" >&2
  archive=iddpm_jax.tar.gz
  trap 'rm -f "$archive"' EXIT
  call git archive --output="$archive" HEAD
  call "${tpus[@]}" tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all
  on_worker all mkdir -p iddpm_jax
  on_worker all tar -xzf "$archive" -C iddpm_jax
  on_worker all iddpm_jax/launch/host.sh install tpu
  [[ ! $share ]] || on_worker all iddpm_jax/launch/host.sh mount "$share"
}

delete() {
  if [[ $queued ]]; then
    call "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force
  else
    call "${tpus[@]}" tpu-vm delete "$name" "${where[@]}"
  fi
}

name='' zone='' project='' type='' version='' share='' worker=0 grace=120
spot='' queued='' dry_run=''
verb=${1:-}
(($# == 0)) || shift
[[ $verb != --help && $verb != -h ]] || { usage; exit; }
while (($#)); do
  case $1 in
    --help | -h) usage; exit ;;
    --) shift; break ;;
    --spot | --queued | --dry_run) printf -v "${1#--}" yes; shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --name | --zone | --project | --type | --version | --share | --worker | --grace)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) die "'$1' is not known; arguments of iddpm_jax.main go after --" ;;
  esac
done
case $verb in
  create | status | install | run | logs | stop | delete) ;;
  *) die "'$verb' is no verb; use create, status, install, run, logs, stop or delete" ;;
esac
[[ $name ]] || die "--name is missing"
[[ $zone ]] || die "--zone is missing, such as us-west4-a"
[[ $grace =~ ^[0-9]+$ ]] || die "--grace is '$grace'; it must be a whole number of seconds"
[[ $verb == run || $# == 0 ]] || die "only run takes arguments of iddpm_jax.main"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpus=(gcloud compute tpus)
where=(--zone="$zone")
[[ ! $project ]] || where+=(--project="$project")
case $verb in
  run)
    (($#)) || die "arguments of iddpm_jax.main are missing; they go after --"
    on_worker all iddpm_jax/launch/host.sh start --distributed "$@"
    ;;
  logs) on_worker "$worker" iddpm_jax/launch/host.sh log ;;
  stop) on_worker all iddpm_jax/launch/host.sh stop "$grace" ;;
  *) "$verb" ;;
esac
