import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from scvi_qbm.alignment import _fit, align, extend_alignment, fit_alignment

N_TYPES, N_DIMENSIONS = 4, 8


def made(n_cells=600, n_batches=3, *, shift=0.15, seed=0):
    """Types at corners of a cube, batches shifted by type: cells, batch, type."""
    random = np.random.default_rng(seed)
    corners = random.permutation(2**N_DIMENSIONS)[:N_TYPES]
    corners = (corners[:, None] >> np.arange(N_DIMENSIONS) & 1).astype(float)
    shifts = shift * random.normal(size=(n_batches, N_TYPES, N_DIMENSIONS))
    kind, batch = random.integers(N_TYPES, size=n_cells), random.integers(n_batches, size=n_cells)
    x = corners[kind] + shifts[batch, kind] + 0.1 * random.normal(size=(n_cells, N_DIMENSIONS))
    return torch.from_numpy(x).float(), torch.from_numpy(batch), kind


def between(x, batch, kind):
    """Mean distance of the batches' means of each type."""
    x, batch = x.numpy(), batch.numpy()
    means = np.array(
        [
            [x[(batch == b) & (kind == k)].mean(0) for k in np.unique(kind)]
            for b in np.unique(batch)
        ]
    )
    return np.linalg.norm(means - means.mean(0), axis=2).mean()


def purity(x, kind, of):
    """Share of the neighbours of cells of type ``of`` that are of it."""
    found = KNeighborsClassifier(15).fit(x, kind == of).predict_proba(x[kind == of])
    return found[:, 1].mean()


def test_batches_come_together_and_types_stay_apart():
    x, batch, kind = made()
    moved = align(fit_alignment(x, batch, 3), x, batch)
    assert between(moved, batch, kind) < 0.4 * between(x, batch, kind)
    assert min(purity(moved, kind, k) for k in range(N_TYPES)) > 0.99


def test_a_cell_is_moved_by_what_is_kept_alone():
    x, batch, _ = made()
    kept = fit_alignment(x, batch, 3)
    whole, some = align(kept, x, batch), torch.tensor([5, 3, 400])
    torch.testing.assert_close(align(kept, x[some], batch[some]), whole[some])
    new, theirs, kind = made(seed=0, n_cells=900)
    assert between(align(kept, new, theirs), theirs, kind) < 0.5 * between(new, theirs, kind)


def test_one_batch_stays_to_the_bit():
    x, _, _ = made()
    batch = torch.zeros(len(x), dtype=torch.long)
    assert torch.equal(align(fit_alignment(x, batch, 1), x, batch), x)


def test_a_type_of_one_batch_only():
    """Far from the other types, and then beside one of them."""
    x, batch, kind = made(1200)
    kept = (kind != 0) | (batch.numpy() == 0)
    x, batch, kind = x[kept], batch[kept], kind[kept]
    assert purity(align(fit_alignment(x, batch, 3), x, batch), kind, 0) >= 0.95
    noise = np.random.default_rng(1).normal(size=((kind == 0).sum(), N_DIMENSIONS))
    beside = torch.eye(N_DIMENSIONS)[0] + 0.1 * torch.from_numpy(noise).float()
    x[kind == 0] = x[kind == 1].mean(0) + beside
    assert purity(align(fit_alignment(x, batch, 3), x, batch), kind, 0) >= 0.95


def test_new_batches_come_to_known_states():
    x, batch, kind = made(1200, 4)
    known = batch < 3
    kept = fit_alignment(x[known], batch[known], 3)
    more = extend_alignment(kept, x, batch, 4)
    assert torch.equal(more.means, kept.means) and torch.equal(more.shifts[:3], kept.shifts)
    before = align(kept, x, batch)
    assert torch.equal(before[~known], x[~known])  # not known yet, so not moved
    after = align(more, x, batch)
    assert torch.equal(after[known], before[known])
    assert between(after, batch, kind) < 0.7 * between(before, batch, kind)
    # Brought anew, not once more: as after a query's training.
    again = extend_alignment(more, x, batch, 4)
    torch.testing.assert_close(again.shifts, more.shifts)


def test_a_batch_without_cells():
    x, batch, _ = made(n_batches=2)
    kept = fit_alignment(x, batch * 2, 3)
    assert (kept.shifts[1] == 0).all() and torch.isfinite(kept.log_weights).all()


@pytest.mark.parametrize("n_cells", [1, 2, 5])
def test_hardly_any_cells(n_cells):
    x, batch, _ = made(n_cells)
    assert torch.isfinite(align(fit_alignment(x, batch, 3), x, batch)).all()


def test_equal_cells():
    x, batch = torch.ones(100, N_DIMENSIONS), torch.arange(100) % 2
    torch.testing.assert_close(align(fit_alignment(x, batch, 2), x, batch), x)


def test_corrections_are_harmonys():
    """Given harmony's soft clusters, the same correction as its ridge regression."""
    harmonypy = pytest.importorskip("harmonypy")
    import pandas as pd

    x, batch, _ = made()
    meta = pd.DataFrame({"batch": batch.numpy().astype(str)})
    found = harmonypy.run_harmony(
        x.numpy().astype(float), meta, "batch", max_iter_harmony=1, verbose=False, ncores=1
    )
    states = torch.from_numpy(np.array(found.R)).float()
    shifts = _fit(x, batch, 3, states).shifts
    ours = x - torch.einsum("ik,ikd->id", states, shifts[batch])
    np.testing.assert_allclose(ours, found.Z_corr, atol=1e-3)
