"""launch/slurm.sh, which submits, and launch/slurm.sbatch, the job."""

import shlex
import signal

import pytest
from stand_ins import LAUNCH, RECORDER, WORKER, eventually, running

SBATCH = str(LAUNCH / "slurm.sbatch")
CALLS = {
    "-- --workdir w": ["sbatch", "--nodes=1", "--ntasks-per-node=1", SBATCH, "--workdir", "w"],
    "--nodes 2 --gpus_per_node=8 -- --workdir w": [
        *"sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8".split(),
        *(SBATCH, "--workdir", "w"),
    ],
    "--cpus_per_task 4 --time 1-00:00:00 --partition p --account a -- --workdir 'a b'": [
        *"sbatch --nodes=1 --ntasks-per-node=1 --cpus-per-task=4 --time=1-00:00:00".split(),
        *("--partition=p", "--account=a", SBATCH, "--workdir", "a b"),
    ],
}


@pytest.mark.parametrize("line", CALLS)
def test_submission_makes_the_call_written_here(stand_ins, line):
    stand_ins.add("sbatch")
    assert stand_ins.run("slurm.sh", *shlex.split(line)).returncode == 0
    assert stand_ins.calls() == [CALLS[line]]


@pytest.mark.parametrize("line", CALLS)
def test_dry_run_prints_the_call_and_makes_none(stand_ins, line):
    stand_ins.add("sbatch")
    done = stand_ins.run("slurm.sh", "--dry_run", *shlex.split(line))
    assert shlex.split(done.stdout) == CALLS[line]
    assert stand_ins.calls() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "arguments of iddpm_jax.main are missing"),
        ("--workdir w", "'--workdir' is not known"),
        ("--nodes", "--nodes needs a value"),
        ("--nodes 0 -- --workdir w", "--nodes is '0'"),
        ("--gpus_per_node all -- --workdir w", "--gpus_per_node is 'all'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stand_ins, line, said):
    stand_ins.add("sbatch")
    done = stand_ins.run("slurm.sh", *line.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert stand_ins.calls() == []


# Ends the stand-in for srun, as Slurm would end the processes of the step.
SCANCEL = (
    RECORDER
    + """
for line in open(os.environ["RECORD"]):
    if json.loads(line)["name"] == "srun":
        os.kill(json.loads(line)["pid"], signal.SIGKILL)
        break
"""
)


@pytest.fixture
def job(stand_ins):
    """Start the job as Slurm would; srun stands for the whole step."""
    stand_ins.add("srun", WORKER)
    stand_ins.add("scancel", SCANCEL)
    stand_ins.add("scontrol")
    script = stand_ins.folder / "spooled"
    script.write_text((LAUNCH / "slurm.sbatch").read_text())
    script.chmod(0o755)

    def start(**environment: str):
        started = stand_ins.start(str(script), "--workdir", "a b", SLURM_JOB_ID="17", **environment)
        assert eventually(lambda: stand_ins.entries(name="srun", event="ready") != [])
        return started

    return start


def test_job_runs_one_step_with_the_arguments(job, stand_ins):
    process = job(ACT="0")
    assert process.wait(timeout=20) == 0
    (call,) = stand_ins.calls()
    assert call == [
        *("srun", "--kill-on-bad-exit=1", "python", "-m", "iddpm_jax.main", "--workdir", "a b")
    ]


def test_exit_code_of_the_job_is_that_of_the_step(job, stand_ins):
    assert job(ACT="5").wait(timeout=20) == 5
    assert stand_ins.entries(name="scontrol") == []


def test_end_of_the_time_saves_and_goes_back_into_the_queue(job, stand_ins):
    process = job()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 0
    (step,) = stand_ins.entries(event="SIGTERM")
    assert not running(step["pid"])
    assert [e["args"] for e in stand_ins.entries(name="scontrol")] == [["requeue", "17"]]
    assert stand_ins.entries(name="scancel") == []


def test_preempted_job_saves_and_leaves_the_queue_alone(job, stand_ins):
    process = job()
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert len(stand_ins.entries(event="SIGTERM")) == 1
    assert stand_ins.entries(name="scontrol") == []


def test_step_that_ignores_sigterm_is_killed(job, stand_ins):
    process = job(ACT="ignore", GRACE_SECONDS="1")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 128 + signal.SIGKILL
    assert [e["args"] for e in stand_ins.entries(name="scancel")] == [["--signal=KILL", "17.0"]]
    assert [e["args"] for e in stand_ins.entries(name="scontrol")] == [["requeue", "17"]]
