import numpy as np
import pytest

from scvi_qbm.metrics.classify import knn_probe


def test_separated_and_shuffled_types():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 60)
    x = rng.normal(size=(180, 4)) + 8 * (labels[:, None] == np.array(["a", "b", "c", "d"]))
    scores = knn_probe(x, labels)
    assert scores.accuracy == 1.0 and scores.macro_f1 == 1.0 and scores.n_cells == 180
    shuffled = knn_probe(x, rng.permutation(labels))
    assert 0.2 < shuffled.accuracy < 0.5 and shuffled.accuracy_sd > 0


def test_small_types_are_left_out():
    rng = np.random.default_rng(0)
    labels = np.array(["a"] * 50 + ["b"] * 50 + ["c"] * 4)
    assert knn_probe(rng.normal(size=(104, 2)), labels).n_cells == 100


def test_bad_input():
    with pytest.raises(ValueError, match="3 cells"):
        knn_probe(np.zeros((3, 2)), ["a", "b"])
    with pytest.raises(ValueError, match="Fewer than 2"):
        knn_probe(np.zeros((20, 2)), ["a"] * 20)
