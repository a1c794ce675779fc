"""What a run reports: means, also where float16 skipped steps; rows in files."""

import csv
import json
import math

import numpy as np
import pytest

from iddpm_jax.training.metrics import Means, Reporter, Writer


def step(loss: float, **more) -> dict[str, np.ndarray]:
    """Metrics of a step with four examples, two of them in quartile 0 and two in quartile 2."""
    row = {
        "loss": loss,
        "gradient_norm": 2 * loss,
        "quartile_weight": np.array([2.0, 0.0, 2.0, 0.0]),
        "l_simple_quartile_sum": np.array([loss, 0.0, 3 * loss, 0.0]),
        "l_vlb_quartile_sum": np.array([4 * loss, 0.0, 8 * loss, 0.0]),
    }
    return {name: np.asarray(value, np.float32) for name, value in {**row, **more}.items()}


def means(*rows: dict[str, np.ndarray]) -> dict[str, float]:
    taken = Means()
    for row in rows:
        taken.add(row)
    return taken.take()


def test_means_are_over_steps_and_within_quartiles():
    result = means(step(1.0), step(3.0))
    assert result["loss"] == 2.0 and result["gradient_norm"] == 4.0
    assert result["l_simple_q0"] == 1.0 and result["l_simple_q2"] == 3.0
    assert result["l_vlb_q0"] == 4.0 and result["l_vlb_q2"] == 8.0
    assert math.isnan(result["l_simple_q1"]) and math.isnan(result["l_vlb_q3"])
    assert not [name for name in result if "quartile" in name or name == "skipped"]


def test_taking_starts_again():
    taken = Means()
    taken.add(step(1.0))
    taken.take()
    taken.add(step(5.0))
    assert taken.take()["loss"] == 5.0


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_skipped_steps_count_as_skipped_alone(wrong):
    bad = step(
        7.0,
        gradient_norm=wrong,
        l_simple_quartile_sum=np.full(4, wrong),
        skipped=1.0,
        log2_loss_scale=20.0,
    )
    good = [step(x, skipped=0.0, log2_loss_scale=x + 16.0) for x in (1.0, 2.0, 3.0)]
    result = means(good[0], bad, *good[1:])
    assert result["skipped"] == 0.25
    assert result["loss"] == 2.0 and result["gradient_norm"] == 4.0
    assert result["log2_loss_scale"] == 18.0
    assert result["l_simple_q0"] == 1.0 and result["l_simple_q2"] == 3.0


def test_means_of_skipped_steps_alone_are_theirs():
    bad = step(7.0, gradient_norm=math.inf, skipped=1.0, log2_loss_scale=19.0)
    result = means(bad, bad)
    assert result["skipped"] == 1.0 and result["log2_loss_scale"] == 19.0
    assert result["loss"] == 7.0 and result["gradient_norm"] == math.inf


def test_not_finite_numbers_become_null_and_empty(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write({"step": 1, "loss": 0.5, "gradient_norm": math.inf, "l_vlb_q1": math.nan})
        writer.write({"step": 2, "loss": -math.inf, "gradient_norm": 1.5, "l_vlb_q1": 2.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    # Strict JSON has neither Infinity nor NaN.
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows == [
        {"step": 1, "loss": 0.5, "gradient_norm": None, "l_vlb_q1": None},
        {"step": 2, "loss": None, "gradient_norm": 1.5, "l_vlb_q1": 2.5},
    ]
    with (tmp_path / "progress.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["gradient_norm"] for row in table] == ["", "1.5"]

    with Writer(tmp_path, 1):  # a run that goes on from step 1 keeps its row as it was
        pass
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert kept == lines[:1]


def test_columns_that_come_later_are_empty_before(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write({"step": 1, "loss": 2.0})
        writer.write({"step": 2, "loss": 1.0, "test_bits_per_dim": 3.0})
        writer.write({"step": 3, "loss": 0.5})
    table = (tmp_path / "progress.csv").read_text().split()
    assert table == ["step,loss,test_bits_per_dim", "1,2.0,", "2,1.0,3.0", "3,0.5,"]


def test_measurement_gets_the_row_of_its_step(tmp_path):
    with Reporter(tmp_path, 0, 6, 4, every=4) as reporter:
        for now in range(1, 7):
            if now == 2:  # two steps in one call are reported after the second of them
                reporter.evaluated(3, "test_bits_per_dim", 2.5)
            vlb = {"l_simple": np.float32(1), "l_vlb": np.float32(1)}
            reporter.step(now, step(float(now), **vlb))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row["loss"], row.get("test_bits_per_dim")) for row in rows]
    assert found == [(3, 2.0, 2.5), (4, 4.0, None), (6, 5.5, None)]
