"""launch/tpu_pod.sh: what it says to gcloud, and a pod of two workers that are folders."""

import shlex
import shutil
import subprocess

import pytest
from stand_ins import LAUNCH, RECORDER, WORKER, eventually, running

POD = ["--name", "pod", "--zone", "us-west4-a"]
TPUS = ["gcloud", "compute", "tpus"]
SSH_ALL = [*TPUS, "tpu-vm", "ssh", "pod", "--zone=us-west4-a", "--worker=all"]

CALLS = {
    "create --type v5litepod-16": [
        [
            *TPUS,
            *"tpu-vm create pod --version=v2-alpha-tpuv5-lite".split(),
            *"--accelerator-type=v5litepod-16 --zone=us-west4-a".split(),
        ]
    ],
    "create --type=v4-32 --spot --project mine": [
        [
            *TPUS,
            *"tpu-vm create pod --version=tpu-ubuntu2204-base".split(),
            *"--accelerator-type=v4-32 --zone=us-west4-a --project=mine --spot".split(),
        ]
    ],
    "create --type v6e-16 --queued --spot": [
        [
            *TPUS,
            *"queued-resources create pod --node-id=pod --runtime-version=v2-alpha-tpuv6e".split(),
            *"--accelerator-type=v6e-16 --zone=us-west4-a --spot".split(),
        ]
    ],
    "create --type v5p-16 --version chosen": [
        [
            *TPUS,
            *"tpu-vm create pod --version=chosen".split(),
            *"--accelerator-type=v5p-16 --zone=us-west4-a".split(),
        ]
    ],
    "status": [[*TPUS, *"tpu-vm describe pod --zone=us-west4-a --format=value(state)".split()]],
    "status --queued": [
        [
            *TPUS,
            *"queued-resources describe pod --zone=us-west4-a --format=value(state.state)".split(),
        ]
    ],
    "install --share bucket": [
        "git archive --output=iddpm_jax.tar.gz HEAD".split(),
        [*TPUS, *"tpu-vm scp iddpm_jax.tar.gz pod: --zone=us-west4-a --worker=all".split()],
        [*SSH_ALL, "--command=mkdir -p iddpm_jax"],
        [*SSH_ALL, "--command=tar -xzf iddpm_jax.tar.gz -C iddpm_jax"],
        [*SSH_ALL, "--command=iddpm_jax/launch/host.sh install tpu"],
        [*SSH_ALL, "--command=iddpm_jax/launch/host.sh mount bucket"],
    ],
    "run -- --config configs/emoji.py --workdir share/runs/emoji": [
        [
            *SSH_ALL,
            "--command=iddpm_jax/launch/host.sh start --distributed "
            "--config configs/emoji.py --workdir share/runs/emoji",
        ]
    ],
    "logs": [
        [
            *TPUS,
            *"tpu-vm ssh pod --zone=us-west4-a --worker=0".split(),
            "--command=iddpm_jax/launch/host.sh log",
        ]
    ],
    "logs --worker 3": [
        [
            *TPUS,
            *"tpu-vm ssh pod --zone=us-west4-a --worker=3".split(),
            "--command=iddpm_jax/launch/host.sh log",
        ]
    ],
    "stop": [[*SSH_ALL, "--command=iddpm_jax/launch/host.sh stop 120"]],
    "stop --grace 60": [[*SSH_ALL, "--command=iddpm_jax/launch/host.sh stop 60"]],
    "delete": [[*TPUS, *"tpu-vm delete pod --zone=us-west4-a".split()]],
    "delete --queued": [
        [*TPUS, *"queued-resources delete pod --zone=us-west4-a --force".split()],
    ],
}


def words_of(line: str) -> list[str]:
    verb, *rest = shlex.split(line)
    return [verb, *POD, *rest]


@pytest.mark.parametrize("line", CALLS)
def test_verb_makes_the_calls_written_here(stand_ins, line):
    stand_ins.add("gcloud")
    # Of git only `archive` is a call of interest; `status` is a question.
    stand_ins.add("git", RECORDER.replace("record(args", 'sys.argv[1] != "status" and record(args'))
    done = stand_ins.run("tpu_pod.sh", *words_of(line))
    assert (done.returncode, done.stderr) == (0, "")
    assert stand_ins.calls() == CALLS[line]


@pytest.mark.parametrize("line", CALLS)
def test_dry_run_prints_the_calls_and_makes_none(stand_ins, line):
    stand_ins.add("gcloud")
    stand_ins.add("git", "#!/bin/sh\n")
    verb, *rest = words_of(line)
    done = stand_ins.run("tpu_pod.sh", verb, "--dry_run", *rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert [shlex.split(call) for call in done.stdout.splitlines()] == CALLS[line]
    assert stand_ins.calls() == []


def test_what_is_not_committed_is_mentioned(stand_ins):
    stand_ins.add("git", "#!/bin/sh\necho ' M README.md'\n")
    done = stand_ins.run("tpu_pod.sh", "install", *POD, "--dry_run")
    assert done.stderr == "note: what is not committed stays here\n"


def test_a_call_that_fails_ends_the_verb_with_its_exit_code(stand_ins):
    stand_ins.add("git", "#!/bin/sh\n")
    stand_ins.add("gcloud", RECORDER + "sys.exit(7)\n")
    done = stand_ins.run("tpu_pod.sh", "install", *POD)
    assert done.returncode == 7
    assert len(stand_ins.calls()) == 1


AWKWARD = ["--config.sample.classes=(3, 8)", "--workdir", "a b/$HOME/'c'", 'x"y\\z', "*", "", "-"]


def test_arguments_survive_every_shell_on_the_way(stand_ins, tmp_path):
    stand_ins.add("gcloud")
    stand_ins.run("tpu_pod.sh", "run", *POD, "--", *AWKWARD)
    (call,) = stand_ins.calls()
    # gcloud splits the command at spaces and ssh joins it again; a shell over there reads it.
    command = " ".join(call[-1].removeprefix("--command=").split(" "))
    recorder = stand_ins.add("recorder")
    done = stand_ins.run(
        "tpu_pod.sh", "run", *POD, "--dry_run", "--", *AWKWARD
    )  # and as pasted from a dry run
    for text in (command, shlex.split(done.stdout)[-1].removeprefix("--command=")):
        heard = shlex.split(text)
        assert heard == ["iddpm_jax/launch/host.sh", "start", "--distributed", *AWKWARD]
    text = command.replace("iddpm_jax/launch/host.sh", str(recorder), 1)
    subprocess.run(["bash", "-c", text], env=stand_ins.environment, check=True, cwd=tmp_path)
    assert stand_ins.entries(name="recorder")[0]["args"] == ["start", "--distributed", *AWKWARD]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "'' is no verb"),
        ("destroy --name pod --zone z", "'destroy' is no verb"),
        ("status --zone z", "--name is missing"),
        ("status --name pod", "--zone is missing"),
        ("status --name", "--name needs a value"),
        ("create --name pod --zone z", "--type is missing"),
        ("create --name pod --zone z --shape 4x4", "'--shape' is not known"),
        ("run --name pod --zone z", "arguments of iddpm_jax.main are missing"),
        ("run --name pod --zone z --config c.py", "'--config' is not known"),
        ("stop --name pod --zone z -- --workdir w", "only run takes arguments"),
        ("stop --name pod --zone z --grace soon", "--grace is 'soon'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stand_ins, line, said):
    stand_ins.add("gcloud")
    done = stand_ins.run("tpu_pod.sh", *line.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert stand_ins.calls() == []


POD_OF_FOLDERS = """#!/usr/bin/env bash
# gcloud, for a pod whose workers are the folders in $PODS.
for word in "$@"; do
  case $word in
    --command=*) command=${word#--command=} ;;
    --worker=all) worker='*' ;;
    --worker=*) worker=${word#--worker=} ;;
  esac
done
for home in $PODS/$worker; do
  (cd "$home" && HOME=$home exec bash -c "$command") &
  workers+=($!)
done
for process in "${workers[@]}"; do wait "$process" || code=$?; done
exit "${code:-0}"
"""


@pytest.fixture
def pod(stand_ins, tmp_path):
    """Two workers with a checkout each: (stand-ins, environment of the workers)."""
    stand_ins.add("gcloud", POD_OF_FOLDERS)
    for worker in ("0", "1"):
        checkout = tmp_path / "pods" / worker / "iddpm_jax"
        shutil.copytree(LAUNCH, checkout / "launch")
        # Where `install` puts it; the process is told from others by its name.
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to(stand_ins.add("python", WORKER))
    return stand_ins, {"PODS": str(tmp_path / "pods")}


def start_on(pod, act: str) -> list[int]:
    """Start a run on the pod: process ids, one a worker."""
    stand_ins, environment = pod
    done = stand_ins.run("tpu_pod.sh", "run", *POD, "--", "--workdir", "w", ACT=act, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert eventually(lambda: len(stand_ins.entries(event="ready")) == 2)
    return [entry["pid"] for entry in stand_ins.entries(event="ready")]


def test_run_goes_on_after_the_connection_and_stop_ends_it(pod, tmp_path):
    stand_ins, environment = pod
    pids = start_on(pod, "obey")
    assert all(running(pid) for pid in pids)
    for worker in ("0", "1"):
        assert (tmp_path / "pods" / worker / "iddpm_jax" / "run.log").read_text()
    for entry in stand_ins.entries(event="ready"):
        assert entry["args"] == ["-m", "iddpm_jax.main", "--distributed", "--workdir", "w"]

    again = stand_ins.run("tpu_pod.sh", "run", *POD, "--", "--workdir", "w", **environment)
    assert again.returncode == 1
    assert again.stderr.count("a run goes on here") == 2
    assert len(stand_ins.entries(event="ready")) == 2

    done = stand_ins.run("tpu_pod.sh", "stop", *POD, **environment)
    assert done.stdout.count("stopped") == 2
    assert not any(running(pid) for pid in pids)
    assert sorted(e["pid"] for e in stand_ins.entries(event="SIGTERM")) == sorted(pids)
    done = stand_ins.run("tpu_pod.sh", "stop", *POD, **environment)
    assert (done.returncode, done.stdout.count("nothing runs")) == (0, 2)


def test_stop_kills_what_does_not_end(pod):
    stand_ins, environment = pod
    pids = start_on(pod, "child")
    done = stand_ins.run("tpu_pod.sh", "stop", *POD, "--grace=1", **environment)
    assert done.stdout.count("killed after 1 s") == 2
    children = [entry["child"] for entry in stand_ins.entries(event="ready")]
    assert eventually(lambda: not any(running(pid) for pid in pids + children))
    assert len(stand_ins.entries(event="SIGTERM")) == 2


def test_number_of_a_process_that_is_no_run_is_left_alone(pod, tmp_path):
    stand_ins, environment = pod
    other = subprocess.Popen(["sleep", "60"])
    (tmp_path / "pods" / "0" / "iddpm_jax" / "run.pid").write_text(str(other.pid))
    done = stand_ins.run("tpu_pod.sh", "stop", *POD, **environment)
    assert done.stdout.count("nothing runs") == 2
    assert other.poll() is None
    other.kill()
    other.wait()
