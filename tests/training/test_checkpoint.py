"""Checkpoints of small states: damage, full disks, which are kept, other devices."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iddpm_jax.errors import InputError
from iddpm_jax.training import checkpoint
from iddpm_jax.training.checkpoint import Checkpoints

SPECS = {"wide": PartitionSpec("fsdp"), "narrow": PartitionSpec(), "step": PartitionSpec()}


def shardings(data: int, fsdp: int) -> dict:
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    mesh = Mesh(devices, ("data", "fsdp"))
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def state(step: int) -> dict[str, np.ndarray]:
    """Another one for each step; noise, so that compressing it changes nothing."""
    rng = np.random.default_rng(step)
    wide = rng.bytes(4 * 64 * 64)
    return {
        "wide": np.frombuffer(wide, np.uint32).reshape(64, 64),
        "narrow": rng.normal(size=3).astype(np.float32),
        "step": np.int32(step),
    }


def like(data: int, fsdp: int) -> dict:
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        state(0),
        shardings(data, fsdp),
    )


def save(checkpoints: Checkpoints, *steps: int, **options) -> None:
    for step in steps:
        on_devices = jax.device_put(state(step), shardings(1, 2))
        checkpoints.save(step, on_devices, {"next": step}, {"size": (1, 0.1)}, **options)


def assert_is(found: tuple, step: int) -> None:
    arrays, position = found
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays), state(step))
    assert position == {"next": step}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path, 5) as checkpoints:
        save(checkpoints, 1, 2)
    return tmp_path


@pytest.mark.parametrize("data, fsdp", [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_state_restores_onto_other_devices(two, data, fsdp):
    with Checkpoints(two, None) as checkpoints:
        found = checkpoints.restore(like(data, fsdp))
    assert_is(found, 2)
    assert jax.tree.map(lambda a: a.sharding, found[0]) == shardings(data, fsdp)


@pytest.mark.parametrize("data, fsdp", [(2, 1), (2, 2)])
def test_saved_state_may_be_overwritten_at_once(tmp_path, data, fsdp):
    sharded = shardings(data, fsdp)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path, 5) as checkpoints:
        for step in (1, 2, 3):
            current = jax.device_put(state(step), sharded)
            checkpoints.save(step, current, {"next": step}, {})
            jax.block_until_ready(overwrite(current))
        for step in (1, 2, 3):
            assert_is(checkpoints.restore(like(data, fsdp), step), step)


def flip_a_bit(folder: Path) -> None:
    file = largest(folder)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)


def largest(folder: Path) -> Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def change_position(folder: Path) -> None:
    file = folder / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('{"next": 2}', '{"next": 3}'))


DAMAGE = {
    "flipped bit": (flip_a_bit, r"array \['wide'\] changed after saving"),
    "position": (change_position, "position, config or checksums have changed"),
    "truncated file": (lambda folder: os.truncate(largest(folder), 100), r"\['?wide|wide"),
    "missing file": (lambda folder: largest(folder).unlink(), "wide"),
    "no arrays": (lambda folder: shutil.rmtree(folder / "state"), "state"),
    "no metadata": (lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(), "metadata are gone"),
    "half metadata": (lambda folder: os.truncate(folder / "_CHECKPOINT_METADATA", 99), "metadata"),
}


@pytest.mark.parametrize("damage, words", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_named_and_the_one_before_is_read(two, capfd, damage, words):
    damage(two / "2")
    before = sorted(two.rglob("*"))
    with Checkpoints(two, None) as checkpoints:
        assert_is(checkpoints.restore(like(1, 2)), 1)
    assert sorted(two.rglob("*")) == before  # what only reads changes nothing
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"warning: checkpoint {two / '2'} cannot be read (")
    with Checkpoints(two, None) as checkpoints:
        with pytest.raises(InputError, match=words):
            checkpoints.restore(like(1, 2), step=2)


def test_damaged_steps_are_set_aside_and_saved_anew(two):
    for _ in range(2):
        flip_a_bit(two / "2")
        with Checkpoints(two, 5) as checkpoints:
            assert_is(checkpoints.restore(like(1, 2)), 1)
            assert checkpoints.latest == 1
            save(checkpoints, 2)
            assert_is(checkpoints.restore(like(1, 2)), 2)
    assert names(two) == ["1", "2", "2.damaged", "2.damaged1"]


def test_nothing_is_set_aside_where_none_can_be_read(two, capfd):
    other = like(1, 2) | {"wide": like(1, 2)["narrow"]}
    with Checkpoints(two, 5) as checkpoints:
        with pytest.raises(
            InputError, match=r"1 cannot be read .*there is none before it"
        ) as error:
            checkpoints.restore(other)
    assert "\n" not in str(error.value)
    assert names(two) == ["1", "2"]


def test_checkpoint_without_checksums_is_read_unchecked(two):
    file = two / "2" / "_CHECKPOINT_METADATA"
    stored = json.loads(file.read_text())
    del stored["custom_metadata"]["crc32"], stored["custom_metadata"]["checksums"]
    file.write_text(json.dumps(stored))
    with Checkpoints(two, None) as checkpoints:
        assert_is(checkpoints.restore(like(1, 2)), 2)


def test_damaged_metric_is_named(tmp_path):
    with Checkpoints(tmp_path, 5) as checkpoints:
        save(checkpoints, 1, metric=1.0)
    (tmp_path / "1" / "metrics" / "metrics").write_text('{"bits')
    with pytest.raises(InputError, match="1/metrics/metrics is damaged; remove it"):
        Checkpoints(tmp_path, 5)


def test_newest_best_and_every_so_many_are_kept(tmp_path):
    measured = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: float("nan"), 6: 4.0, 7: None}
    for steps in ((1, 2, 3), (4, 5, 6, 7)):  # the metrics of the first are read from the disk
        with Checkpoints(tmp_path, 2, keep_best=2, keep_every=4) as checkpoints:
            for step in steps:
                save(checkpoints, step, metric=measured[step])
    assert names(tmp_path) == ["2", "3", "4", "6", "7"]
    with Checkpoints(tmp_path, None) as checkpoints:
        assert checkpoints.best == 2 and checkpoints.latest == 7


def test_nothing_is_best_without_metrics(two):
    with Checkpoints(two, None) as checkpoints:
        assert checkpoints.best is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 12_000])
def test_full_disk_costs_one_line_and_no_checkpoint(small_disk, capfd, left):
    folder = small_disk / "checkpoints"
    with Checkpoints(folder, 1) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(free - left))
        save(checkpoints, 2)
        words = r"step 2 could not be written \(No space left on device\); that of step 1 is whole"
        with pytest.raises(InputError, match=words):
            checkpoints.wait()
    (small_disk / "filler").unlink()
    with Checkpoints(folder, 1) as checkpoints:
        assert_is(checkpoints.restore(like(1, 2)), 1)
        save(checkpoints, 2)
    assert names(folder) == ["2"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fsdp", [1, 2])
def test_failed_save_is_told_and_hides_no_other_failure(tmp_path, monkeypatch, fsdp):
    def fail(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="step 1 could not be written .No space.* none before it"):
        with Checkpoints(tmp_path, 1) as checkpoints:
            monkeypatch.setattr(checkpoint, "checksums", fail)
            checkpoints.save(1, jax.device_put(state(1), shardings(1, fsdp)), None, {})
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):
        with Checkpoints(tmp_path, 1) as checkpoints:
            save(checkpoints, 1)
            raise ZeroDivisionError
