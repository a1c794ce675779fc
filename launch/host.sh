#!/usr/bin/env bash
# What one machine does for a run: install, mount, start, log, stop. `launch/host.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
What each machine does for a run; launch/tpu_pod.sh calls it on all workers of a pod.

  launch/host.sh [--dry_run] VERB

Verbs
  install [EXTRA]   this package into .venv, with its extra (default tpu; cuda, cuda12)
  mount SHARE       mount a Cloud Storage bucket (a name) or NFS (SERVER:/EXPORT) at share/
  start ARGUMENTS   python -m iddpm_jax.main ARGUMENTS in the background, its output in run.log
  log               the end of run.log, and what is added to it
  stop [SECONDS]    SIGTERM, on which the run saves and ends; SIGKILL after SECONDS (default 120)

Flags
  --dry_run         print the commands and run none

Example, on a machine of its own
  launch/host.sh mount my-bucket
  launch/host.sh start --config configs/emoji.py --workdir share/runs/emoji
TEXT
}

die() {
  echo "error: $1; see launch/host.sh --help" >&2
  exit 2
}

call() {
  local words
  printf -v words '%q ' "$@"
  if [[ $dry_run ]]; then echo "${words% }"; else "$@"; fi
}

install() {
  # The systems of TPU VMs have Python 3.10, which is too old: uv brings one along.
  command -v uv >/dev/null || call python3 -m pip install --quiet --user uv
  call uv venv --quiet --allow-existing --python 3.12 .venv
  call uv pip install --quiet --python .venv --editable ".[$1]"
}

mount_share() {
  call mkdir -p share
  ! mountpoint -q share || return 0
  if [[ $1 == *:/* ]]; then
    call sudo apt-get install -qq -y nfs-common
    call sudo mount -t nfs "$1" share
    call sudo chown "$(id -u)" share
  else
    command -v gcsfuse >/dev/null || install_gcsfuse
    # Several machines write here: one that remembered what it saw a minute ago would miss files.
    call gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 --metadata-cache-negative-ttl-secs 0 \
      "$1" share
  fi
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local list=/etc/apt/sources.list.d/gcsfuse.list
  local apt=https://packages.cloud.google.com/apt
  call sudo curl -fsS -o "$key" "$apt/doc/apt-key.gpg"
  call sudo bash -c "echo 'deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main' >$list"
  call sudo apt-get update -qq
  call sudo apt-get install -qq -y gcsfuse
}

# Whether process $1 is a run: after a restart, a number in run.pid may be anyone's.
is_run() { [[ $1 && $(ps -o args= -p "$1") == *iddpm_jax.main* ]]; }

start() {
  local pid
  pid=$(cat run.pid 2>/dev/null || true)
  if is_run "$pid"; then
    echo "error: a run goes on here (process $pid); stop it first" >&2
    exit 1
  fi
  local command=("${PYTHON:-.venv/bin/python}" -m iddpm_jax.main "$@")
  if [[ $dry_run ]]; then
    call nohup setsid "${command[@]}"
  else
    command -v "${command[0]}" >/dev/null || die "${command[0]} is missing; install first"
    local device=tpu
    ! command -v nvidia-smi >/dev/null || device=gpu
    # shellcheck source=/dev/null
    source "launch/env/$device.sh"
    # Out of this session, whose end would end it; setsid makes it a process group as well.
    nohup setsid "${command[@]}" </dev/null >>run.log 2>&1 &
    echo $! >run.pid
  fi
}

stop() {
  local pid
  pid=$(cat run.pid 2>/dev/null || true)
  if ! is_run "$pid"; then
    echo "$(hostname): nothing runs"
    return
  fi
  call kill -TERM "$pid"
  [[ ! $dry_run ]] || return 0
  local waited
  for ((waited = 0; waited < 5 * $1; waited++)); do
    if ! is_run "$pid"; then
      echo "$(hostname): stopped"
      return
    fi
    sleep 0.2
  done
  kill -KILL -- "-$pid"
  echo "$(hostname): killed after $1 s"
}

dry_run=''
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
verb=${1:-}
(($# == 0)) || shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$HOME/.local/bin:$PATH"
case $verb in
  --help | -h) usage ;;
  install) install "${1:-tpu}" ;;
  mount)
    (($#)) || die "what to mount is missing: a bucket, or SERVER:/EXPORT"
    mount_share "$1"
    ;;
  start)
    (($#)) || die "arguments of iddpm_jax.main are missing"
    start "$@"
    ;;
  log) call tail -n 100 -F run.log ;;
  stop) stop "${1:-120}" ;;
  *) die "'$verb' is no verb; use install, mount, start, log or stop" ;;
esac
