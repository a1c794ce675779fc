"""launch/host.sh: installing and mounting on one machine. Start and stop: test_tpu_pod.py."""

import shlex
import shutil

import pytest
from stand_ins import LAUNCH

INSTALL = [
    "uv venv --quiet --allow-existing --python 3.12 .venv".split(),
    [*"uv pip install --quiet --python .venv --editable".split(), ".[tpu]"],
]
BUCKET = [
    "mkdir -p share".split(),
    [
        *"gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0".split(),
        *"--metadata-cache-negative-ttl-secs 0 bucket share".split(),
    ],
]
NFS = [
    "mkdir -p share".split(),
    "sudo apt-get install -qq -y nfs-common".split(),
    "sudo mount -t nfs 10.0.0.2:/runs share".split(),
    ["sudo", "chown", "1234", "share"],
]
PROGRAMS = "uv gcsfuse sudo mkdir tail kill nohup".split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("install", INSTALL),
        ("install cuda", [INSTALL[0], [*INSTALL[1][:-1], ".[cuda]"]]),
        ("mount bucket", BUCKET),
        ("mount 10.0.0.2:/runs", NFS),
        ("log", ["tail -n 100 -F run.log".split()]),
    ],
)
def test_verb_makes_the_calls_written_here(stand_ins, line, expected):
    for program in PROGRAMS:
        stand_ins.add(program)
    stand_ins.add("id", "#!/bin/sh\necho 1234\n")
    stand_ins.add("mountpoint", "#!/bin/sh\nexit 1\n")
    assert stand_ins.run("host.sh", *line.split(), HOME="/nowhere").returncode == 0
    assert stand_ins.calls() == expected

    made = len(stand_ins.calls())
    done = stand_ins.run("host.sh", "--dry_run", *line.split(), HOME="/nowhere")
    assert [shlex.split(call) for call in done.stdout.splitlines()] == expected
    assert len(stand_ins.calls()) == made


def test_what_is_mounted_is_not_mounted_again(stand_ins):
    for program in PROGRAMS:
        stand_ins.add(program)
    stand_ins.add("mountpoint", "#!/bin/sh\nexit 0\n")
    assert stand_ins.run("host.sh", "mount", "bucket", HOME="/nowhere").returncode == 0
    assert stand_ins.calls() == BUCKET[:1]


def test_uv_and_gcsfuse_are_installed_where_they_are_missing(stand_ins):
    for name, text in {"mountpoint": "exit 1", "lsb_release": "echo jammy"}.items():
        stand_ins.add(name, f"#!/bin/sh\n{text}\n")
    for program in "bash cat dirname env mkdir ps".split():
        (stand_ins.folder / program).symlink_to(shutil.which(program))
    path = {"PATH": str(stand_ins.folder), "HOME": "/nowhere"}
    done = stand_ins.run("host.sh", "--dry_run", "install", **path)
    first = "python3 -m pip install --quiet --user uv".split()
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [first, *INSTALL]

    done = stand_ins.run("host.sh", "--dry_run", "mount", "bucket", **path)
    calls = [shlex.split(line) for line in done.stdout.splitlines()]
    key = "/usr/share/keyrings/cloud.google.asc"
    source = "https://packages.cloud.google.com/apt"
    assert calls[1:5] == [
        ["sudo", "curl", "-fsS", "-o", key, f"{source}/doc/apt-key.gpg"],
        [
            *("sudo", "bash", "-c"),
            f"echo 'deb [signed-by={key}] {source} gcsfuse-jammy main' "
            ">/etc/apt/sources.list.d/gcsfuse.list",
        ],
        "sudo apt-get update -qq".split(),
        "sudo apt-get install -qq -y gcsfuse".split(),
    ]
    assert [calls[0], calls[5]] == BUCKET


def test_start_without_an_installation_is_refused(stand_ins, tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "host.sh", tmp_path / "launch")
    done = stand_ins.run(str(tmp_path / "launch" / "host.sh"), "start", "--workdir", "w")
    assert done.returncode == 2
    assert ".venv/bin/python is missing; install first" in done.stderr
    assert not (tmp_path / "run.pid").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "'' is no verb"),
        ("destroy", "'destroy' is no verb"),
        ("mount", "what to mount is missing"),
        ("start", "arguments of iddpm_jax.main are missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stand_ins, line, said):
    done = stand_ins.run("host.sh", *line.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
