"""Published scores, where their data are at hand: is our pipeline scIB's?

The files are too large for a test to download: put them where ``scvi_qbm.benchmark.data`` looks
(docs/datasets.md) and run ``make test-slow``.
"""

from typing import NamedTuple

import pytest

from scvi_qbm.benchmark.config import DataSpec
from scvi_qbm.benchmark.data import data_dir, describe
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.scores import prepare_reference, score_embedding


class Anchor(NamedTuple):
    """scVI on 2,000 highly variable genes: Luecken et al. (2022), Nat. Methods 19, 41, scores of
    theislab/scib-reproducibility, data/metrics.csv at 5f9c08e; checked against Open Problems."""

    data: str
    nmi: float
    ari: float


ANCHORS = (Anchor("pancreas", 0.914, 0.949), Anchor("immune", 0.817, 0.830))


def scvi_scores(spec, seed=0, **options):
    """NMI and ARI of scVI as scIB ran it: 30 latents, two layers, its own epochs."""
    spec = resolve(spec)
    adata = load_data(spec)
    keys = {"batch_key": spec.batch_key, "label_key": spec.label_key}
    reference = prepare_reference(adata, layer=None, **keys)
    options = {"n_latent": 30, "n_layers": 2, "max_epochs": None} | options
    result = METHODS["scvi"].run(adata, batch_key=spec.batch_key, seed=seed, **options)
    scores, _ = score_embedding(result.embedding, reference, groups=("clustering",), seed=seed)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda anchor: anchor.data)
def test_scvi_has_its_published_scores(anchor):
    path = data_dir() / describe(anchor.data).file_name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    scores = scvi_scores(DataSpec(anchor.data, n_top_genes=2000))
    assert scores["nmi"] == pytest.approx(anchor.nmi, abs=0.03)
    assert scores["ari"] == pytest.approx(anchor.ari, abs=0.06)


def test_the_check_itself_runs():
    scores = scvi_scores(DataSpec("pbmc68k", n_top_genes=200), max_epochs=2)
    assert 0 <= scores["nmi"] <= 1 and scores["ari"] <= 1
