"""The table of scores: which there are, their errors, their names and their notes."""

import numpy as np
import pytest

from iddpm_jax import config
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import reference as files
from iddpm_jax.evaluation.features import Features
from iddpm_jax.evaluation.fid import frechet_distance, statistics
from iddpm_jax.evaluation.scores import Settings, scores, side

SETTINGS = Settings(
    neighbours=3, manifold_images=60, kid_subsets=4, kid_subset_size=50, resamples=5, seed=0
)


def features(count, seed=0, size=6):
    generator = np.random.default_rng(seed)
    sizes = (size, 4, 10)
    return Features(*(generator.standard_normal((count, n)).astype(np.float32) for n in sizes))


def saved(of, spatial=True):
    stats = statistics(of.pool), statistics(of.spatial) if spatial else None
    return files.Saved(*stats, "inception", "pytorch_fid", "", False)


def by_name(samples, reference, distance="FID", settings=SETTINGS):
    return {score.name: score for score in scores(samples, reference, distance, settings)}


def test_two_sets_of_features_have_every_score():
    a, b = features(100), features(80, seed=1)
    found = by_name(side(a), side(b))
    assert list(found) == ["FID", "sFID", "IS", "KID", "precision", "recall"]
    expected = frechet_distance(statistics(a.pool), statistics(b.pool))
    assert found["FID"].value == pytest.approx(expected, rel=1e-12)
    expected = frechet_distance(statistics(a.spatial), statistics(b.spatial))
    assert found["sFID"].value == pytest.approx(expected, rel=1e-12)
    assert all(np.isfinite(s.value) and s.error > 0 and s.error_from for s in found.values())
    better = [s.better for s in found.values()]
    assert better == ["lower", "lower", "higher", "lower", "higher", "higher"]


def test_statistics_alone_have_distances_without_errors():
    a, b = features(100), features(80, seed=1)
    found = by_name(side(None, saved(a)), side(None, saved(b)))
    assert list(found) == ["FID", "sFID"]
    whole = by_name(side(a), side(b))
    for name, score in found.items():
        assert score.error is None and score.error_from == ""
        assert score.value == pytest.approx(whole[name].value, rel=1e-12)


def test_statistics_of_a_reference_leave_out_what_needs_its_features():
    found = by_name(side(features(100)), side(None, saved(features(80), spatial=False)))
    assert list(found) == ["FID", "IS"]


def test_a_files_statistics_count_where_its_pictures_are_there_too():
    a, b, more = features(100), features(80, seed=1), features(500, seed=2)
    found = by_name(side(a), side(b, saved(more)))
    assert len(found) == 6
    assert found["FID"].value == by_name(side(a), side(more))["FID"].value
    assert found["KID"] == by_name(side(a), side(b))["KID"]


def test_scores_of_another_network_do_not_bear_the_names_of_papers():
    found = by_name(side(features(100)), side(features(80, seed=1)), "FD-digits")
    assert list(found) == [
        "FD-digits",
        "sFD-digits",
        "IS-digits",
        "KD-digits",
        "precision-digits",
        "recall-digits",
    ]


def test_distances_of_fewer_images_than_features_say_so():
    few, many = features(5), features(100, seed=1)
    settings = SETTINGS._replace(neighbours=1)
    note = "6 features need more than 6 images; with 5 the distance is mostly bias"
    assert by_name(side(few), side(many), settings=settings)["FID"].note == note
    assert by_name(side(many), side(few), settings=settings)["FID"].note == note
    assert "want of more samples" in by_name(side(many), side(many))["FID"].note


def test_manifolds_and_subsets_are_random_and_of_the_size_asked_for():
    # The first images are all alike, as those of a folder may be.
    a, b = features(100), features(80, seed=1)
    a.pool[:60] = 100
    found = by_name(side(a), side(b))
    assert 0 < found["precision"].value < 0.6
    assert found["precision"].note == "60 samples, 60 of the reference, k=3"
    assert found["KID"].note == ""
    few = by_name(side(features(40)), side(b))
    assert few["KID"].note == "subsets of 40 images, as there are no more"


def test_scores_depend_on_the_seed_alone():
    a, b = side(features(100)), side(features(80, seed=1))
    assert by_name(a, b) == by_name(a, b)
    other = by_name(a, b, settings=SETTINGS._replace(seed=1))
    assert other["FID"].value == by_name(a, b)["FID"].value
    assert other["KID"].value != by_name(a, b)["KID"].value


def test_settings_are_keys_of_the_config():
    section = config.base().fid
    assert Settings(**{key: section[key] for key in Settings._fields}).neighbours == 3


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_samples_are_refused_in_one_line(count):
    with pytest.raises(InputError) as refused:
        scores(side(features(count)), side(features(80)), "FID", SETTINGS)
    assert "\n" not in str(refused.value)


def test_one_reference_cannot_be_compared_with_another_networks():
    with pytest.raises(InputError, match="of 6 and of 7 features"):
        scores(side(features(20)), side(features(80, size=7)), "FID", SETTINGS)
