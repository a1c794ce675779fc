"""launch/local.sh: several processes on this machine."""

import os
import shlex
import signal
import socket

import pytest
from stand_ins import WORKER, eventually, running


def main(port: str, processes: int, number: int, *rest: str) -> list[str]:
    """The arguments that process `number` is to get."""
    return [
        *("-m", "iddpm_jax.main", "--coordinator", f"localhost:{port}"),
        *("--num_processes", str(processes), "--process_id", str(number), *rest),
    ]


def started(stand_ins, count: int) -> dict[str, dict]:
    """Wait until that many processes listen: process number -> record."""
    assert eventually(lambda: len(stand_ins.entries(event="ready")) == count)
    return {e["args"][e["args"].index("--process_id") + 1]: e for e in stand_ins.entries()}


def ended(process) -> tuple[int, str, str]:
    """Wait for the launcher: (exit code, stdout, stderr)."""
    out, error = process.communicate(timeout=20)
    return process.returncode, out, error


def test_processes_are_told_who_they_are(stand_ins):
    stand_ins.add("python", WORKER)
    launcher = stand_ins.start("local.sh", "--", "--workdir", "a (b)", "--devices", "2")
    found = started(stand_ins, 2)
    port = found["0"]["args"][3].removeprefix("localhost:")
    assert 20000 <= int(port) < 30000
    for i in range(2):
        expected = main(port, 2, i, "--workdir", "a (b)", "--devices", "2")
        assert found[str(i)]["args"] == expected
        assert found[str(i)]["gpus"] is None
        # Out of reach of a Ctrl-C, which goes to the group of the launcher.
        assert os.getpgid(found[str(i)]["pid"]) == found[str(i)]["pid"]
    launcher.terminate()
    assert ended(launcher)[0] == 0


def test_gpus_are_given_out_evenly(stand_ins):
    stand_ins.add("python", WORKER)
    words = ["--processes", "3", "--gpus=6", "--port", "21234", "--", "--workdir", "w"]
    launcher = stand_ins.start("local.sh", *words)
    found = started(stand_ins, 3)
    assert [found[str(i)]["gpus"] for i in range(3)] == ["0,1", "2,3", "4,5"]
    launcher.terminate()
    ended(launcher)


def test_dry_run_prints_the_commands_and_runs_none(stand_ins):
    stand_ins.add("python", WORKER)
    words = ["--port=21234", "--dry_run", "--", "--config.sample.classes=(3, 8)"]
    done = stand_ins.run("local.sh", *words)
    rest = "--config.sample.classes=(3, 8)"
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands == [["python", *main("21234", 2, i, rest)] for i in range(2)]
    done = stand_ins.run("local.sh", "--processes=1", "--gpus=2", *words)
    expected = ["env", "CUDA_VISIBLE_DEVICES=0,1", "python", *main("21234", 1, 0, rest)]
    assert shlex.split(done.stdout) == expected
    assert stand_ins.calls() == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_every_process_as_sigterm(stand_ins, sent):
    stand_ins.add("python", WORKER)
    launcher = stand_ins.start("local.sh", "--", "--workdir", "w")
    pids = [entry["pid"] for entry in started(stand_ins, 2).values()]
    os.killpg(launcher.pid, sent)  # as a terminal does
    assert ended(launcher)[0] == 0
    assert sorted(e["pid"] for e in stand_ins.entries(event="SIGTERM")) == sorted(pids)
    assert not any(running(pid) for pid in pids)


def test_process_that_ignores_sigterm_is_killed_with_its_children(stand_ins):
    stand_ins.add("python", WORKER)
    launcher = stand_ins.start("local.sh", "--grace", "1", "--", "--workdir", "w", ACT_1="child")
    found = started(stand_ins, 2)
    launcher.terminate()
    code, _, error = ended(launcher)
    assert (code, error) == (137, "process 1 ended with exit code 137\n")
    assert len(stand_ins.entries(event="SIGTERM")) == 2
    pids = [found["0"]["pid"], found["1"]["pid"], found["1"]["child"]]
    assert eventually(lambda: not any(running(pid) for pid in pids))


def test_second_ctrl_c_does_not_wait(stand_ins):
    stand_ins.add("python", WORKER)
    launcher = stand_ins.start("local.sh", "--", "--workdir", "w", ACT="ignore")
    pids = [entry["pid"] for entry in started(stand_ins, 2).values()]
    os.killpg(launcher.pid, signal.SIGINT)
    assert eventually(lambda: len(stand_ins.entries(event="SIGTERM")) == 2)
    assert launcher.poll() is None
    os.killpg(launcher.pid, signal.SIGINT)
    assert ended(launcher)[0] == 128 + signal.SIGKILL
    assert not any(running(pid) for pid in pids)


def test_first_failure_stops_the_others_and_is_the_exit_code(stand_ins):
    stand_ins.add("python", WORKER)
    done = stand_ins.run("local.sh", "--processes=3", "--", "--workdir=w", ACT_1="3")
    assert done.returncode == 3
    assert "process 1 ended with exit code 3\n" in done.stderr
    ready = {e["args"][e["args"].index("--process_id") + 1]: e["pid"] for e in stand_ins.entries()}
    told = {e["pid"] for e in stand_ins.entries(event="SIGTERM")}
    assert told <= {ready.get("0"), ready.get("2")}
    assert not any(running(pid) for pid in ready.values())


def test_all_ends_well_when_every_process_does(stand_ins):
    stand_ins.add("python", WORKER)
    done = stand_ins.run("local.sh", "--", "--workdir", "w", ACT="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["a line of process 0", "a line of process 1"]
    assert stand_ins.entries(event="SIGTERM") == []


def test_output_can_go_to_files(stand_ins, tmp_path):
    stand_ins.add("python", WORKER)
    logs = tmp_path / "logs"
    done = stand_ins.run("local.sh", "--logs", str(logs), "--", "--workdir", "w", ACT="0")
    assert (done.returncode, done.stdout) == (0, "")
    for i in range(2):
        assert (logs / f"process_{i}.log").read_text() == f"a line of process {i}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "arguments of iddpm_jax.main are missing"),
        ("--config c.py", "'--config' is not known"),
        ("--processes", "--processes needs a value"),
        ("--processes 0 -- --workdir w", "--processes is '0'"),
        ("--grace -1 -- --workdir w", "--grace is '-1'"),
        ("--port http -- --workdir w", "--port is 'http'"),
        ("--gpus 3 -- --workdir w", "--gpus 3 is not a multiple of --processes 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stand_ins, line, said):
    stand_ins.add("python", WORKER)
    done = stand_ins.run("local.sh", *line.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert stand_ins.calls() == []


def test_port_that_is_taken_is_refused(stand_ins):
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
        done = stand_ins.run("local.sh", "--port", port, "--", "--workdir", "w")
    assert done.returncode == 2
    assert f"--port {port} is taken" in done.stderr
