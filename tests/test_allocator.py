"""Which allocator a program on CPUs starts with, and that it starts again with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iddpm_jax import allocator

CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A system with neither allocator, until the paths given exist."""
    monkeypatch.setattr(allocator, "USR", tmp_path)
    monkeypatch.setattr(allocator.sysconfig, "get_config_var", lambda _: "x86_64-linux-gnu")
    monkeypatch.setattr(allocator.metadata, "files", lambda _: [])

    def add(*paths: str) -> list[str]:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return [str(tmp_path / path) for path in paths]

    return add


class InPackage:
    """What importlib.metadata says of a file."""

    def __init__(self, path: str):
        self.name, self._path = Path(path).name, path

    def locate(self) -> str:
        return self._path


@pytest.mark.parametrize("folder", ["lib/x86_64-linux-gnu", "lib64"])
def test_a_system_s_tcmalloc_is_found(installed, folder):
    assert allocator.environment(CPU) == {}
    [path] = installed(f"{folder}/libtcmalloc_minimal.so.4")
    assert allocator.environment(CPU) == {"LD_PRELOAD": path}


def test_tcmalloc_of_another_architecture_is_left_alone(installed):
    installed("lib/i386-linux-gnu/libtcmalloc_minimal.so.4")
    assert allocator.environment(CPU) == {}


def test_tbbmalloc_of_the_package_comes_second_and_keeps_large_blocks(installed, monkeypatch):
    paths = installed("venv/lib/libtbbmalloc_proxy.so.2", "venv/lib/libtbbmalloc.so.2")
    monkeypatch.setattr(allocator.metadata, "files", lambda _: [InPackage(p) for p in paths])
    found = allocator.environment(CPU)
    assert found["LD_PRELOAD"].split(":") == paths[::-1]  # the proxy needs the other
    assert int(found["TBB_MALLOC_SET_HUGE_SIZE_THRESHOLD"]) == 2**23
    own = {"TBB_MALLOC_SET_HUGE_SIZE_THRESHOLD": "1"}
    assert allocator.environment({**CPU, **own}).keys() == {"LD_PRELOAD"}
    [path] = installed("lib64/libtcmalloc_minimal.so.4")
    assert allocator.environment(CPU) == {"LD_PRELOAD": path}


def test_half_a_tbbmalloc_is_none(installed, monkeypatch):
    paths = installed("venv/lib/libtbbmalloc_proxy.so.2")
    monkeypatch.setattr(allocator.metadata, "files", lambda _: [InPackage(p) for p in paths])
    assert allocator.environment(CPU) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"LD_PRELOAD": "libmine.so", **CPU},
        {"LD_PRELOAD": "", **CPU},
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
)
def test_what_is_set_stays_and_accelerators_are_left_alone(installed, given):
    installed("lib64/libtcmalloc_minimal.so.4")
    assert allocator.environment(given) == {}


@pytest.mark.parametrize("package", ["jax_plugins", "libtpu"])
def test_an_accelerator_is_known_by_its_package(installed, monkeypatch, package):
    installed("lib64/libtcmalloc_minimal.so.4")
    monkeypatch.setattr(allocator.util, "find_spec", lambda name: name == package or None)
    assert allocator.environment({}) == {}
    monkeypatch.setattr(allocator.util, "find_spec", lambda name: None)
    assert allocator.environment({}) != {}


@pytest.mark.parametrize("folder", ["a b", "a:b"])
def test_a_path_that_the_linker_cannot_read_is_not_used(installed, monkeypatch, tmp_path, folder):
    monkeypatch.setattr(allocator, "USR", tmp_path / folder)
    installed(f"{folder}/lib64/libtcmalloc_minimal.so.4")
    assert allocator.environment(CPU) == {}


PROGRAM = """
import sys
from iddpm_jax import allocator
allocator.restart()
print(sys.argv[1:], sys.flags.utf8_mode, repr(allocator.name()))
print(open("/proc/self/maps").read())
"""


def test_a_program_starts_again_with_the_allocator(tmp_path):
    expected = allocator.environment(CPU)
    if not expected:
        pytest.skip("this system has no allocator to start with")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    root = Path(allocator.__file__).parents[1]
    for extra, there in (({}, True), ({"LD_PRELOAD": ""}, False)):
        done = subprocess.run(
            [sys.executable, "-X", "utf8=1", str(program), "a b", "--c=*"],
            env={**environment, **CPU, "PYTHONPATH": str(root), **extra},
            capture_output=True,
            text=True,
            check=True,
        )
        first, maps = done.stdout.split("\n", 1)
        assert first.startswith("['a b', '--c=*'] 1 ")
        assert done.stderr == ""
        for library in expected["LD_PRELOAD"].split(":"):
            assert (Path(library).name in maps) is there
        assert ("malloc" in first) is there


def test_the_command_line_prints_the_environment(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "iddpm_jax.allocator"],
        env={**os.environ, **CPU},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"{k}={v}" for k, v in allocator.environment(CPU).items()]
