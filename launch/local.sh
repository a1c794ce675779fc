#!/usr/bin/env bash
# Several processes on this machine, as on the hosts of a pod. `launch/local.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train with several processes on this machine: each with virtual CPU devices of its own, or with a
share of the GPUs. A pod in small, for trying things out.

  launch/local.sh [--processes N] [--gpus N] [--port PORT] [--logs FOLDER] [--grace SECONDS]
                  [--dry_run] -- ARGUMENTS of python -m iddpm_jax.main

Flags
  --processes  how many (default 2)
  --gpus       GPUs of this machine, given out evenly; by default a process sees them all
  --port       where process 0 waits for the others (default: a free one)
  --logs       folder for what the processes print, process_0.log and so on (default: this terminal)
  --grace      seconds between SIGTERM and SIGKILL (default 120)
  --dry_run    print the commands and run none

Example: two processes with two virtual CPU devices each
  launch/local.sh -- --config configs/digits.py --workdir runs/two --devices 2

Ctrl-C or SIGTERM: SIGTERM to all, on which they save at the same step and end; SIGKILL to what is
left when the grace time is over, or at a second Ctrl-C. When a process fails, the others are
stopped in the same way. The exit code is that of the first to fail. PYTHON names the interpreter.
TEXT
}

die() {
  echo "error: $1; see launch/local.sh --help" >&2
  exit 2
}

processes=2 gpus='' port='' logs='' grace=120 dry_run=''
while (($#)); do
  case $1 in
    --help | -h) usage; exit ;;
    --) shift; break ;;
    --dry_run) dry_run=yes; shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --processes | --gpus | --port | --logs | --grace)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) die "'$1' is not known; arguments of iddpm_jax.main go after --" ;;
  esac
done
(($#)) || die "arguments of iddpm_jax.main are missing; they go after --"
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "--processes is '$processes'; it must be at least 1"
[[ $grace =~ ^[0-9]+$ ]] || die "--grace is '$grace'; it must be a whole number of seconds"
[[ $port =~ ^[0-9]*$ ]] || die "--port is '$port'; it must be a number"
if [[ $gpus ]]; then
  [[ $gpus =~ ^[1-9][0-9]*$ ]] || die "--gpus is '$gpus'; it must be at least 1"
  ((gpus % processes == 0)) || die "--gpus $gpus is not a multiple of --processes $processes"
fi
taken() { (exec 3<>"/dev/tcp/localhost/$1") 2>/dev/null; }
if [[ $port ]]; then
  ! taken "$port" || die "--port $port is taken"
else
  # Below the ports that the system gives to outgoing connections.
  until port=$((20000 + RANDOM % 10000)) && ! taken "$port"; do :; done
fi

# The command of process $1, in the array `command`.
compose() {
  command=("${PYTHON:-python}" -m iddpm_jax.main --coordinator "localhost:$port"
    --num_processes "$processes" --process_id "$1" "${arguments[@]}")
  if [[ $gpus ]]; then
    local share=$((gpus / processes))
    local ids
    ids=$(seq -s, "$((share * $1))" "$((share * $1 + share - 1))")
    command=(env "CUDA_VISIBLE_DEVICES=$ids" "${command[@]}")
  fi
}

arguments=("$@")
if [[ $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    compose "$i"
    printf -v words '%q ' "${command[@]}"
    echo "${words% }"
  done
  exit
fi

# shellcheck source=/dev/null
if [[ $gpus ]]; then source "$(dirname "${BASH_SOURCE[0]}")/env/gpu.sh"; fi

pids=() code=0 asked=0
# Signals go to whole process groups, so that nothing a process started is left behind.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}
trap 'asked=$((asked + 1))' INT TERM HUP

[[ ! $logs ]] || mkdir -p "$logs"
# With job control every process has a group of its own: a Ctrl-C reaches this script alone.
set -m
for ((i = 0; i < processes; i++)); do
  compose "$i"
  if [[ $logs ]]; then
    "${command[@]}" </dev/null >"$logs/process_$i.log" 2>&1 &
  else
    "${command[@]}" </dev/null &
  fi
  pids+=($!)
done
set +m

# Looks around five times a second. `stopping` is how long ago SIGTERM went out, in such looks.
stopping='' ended=()
exec 3>&2 2>/dev/null # the shell's own notices of what was killed are less clear than ours
while ((${#ended[@]} < processes)); do
  sleep 0.2 || true # a Ctrl-C ends it
  for i in "${!pids[@]}"; do
    if [[ ${ended[i]:-} ]] || kill -0 "${pids[i]}"; then continue; fi
    ended[i]=0
    wait "${pids[i]}" || ended[i]=$?
    ((ended[i] == 0)) || echo "process $i ended with exit code ${ended[i]}" >&3
    ((code)) || code=${ended[i]}
  done
  if [[ ! $stopping ]] && ((asked || code)); then
    stopping=0
    signal_all TERM
  fi
  if [[ $stopping ]]; then
    ((stopping < 5 * grace && asked < 2)) || signal_all KILL
    stopping=$((stopping + 1))
  fi
done
signal_all KILL
exit "$code"
