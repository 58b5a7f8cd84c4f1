"""The columns of scores: names, groups, directions, meaning."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DESCRIPTIONS", "GROUPS", "METRICS", "Metric"]


class Metric(NamedTuple):
    """A column of :func:`score_embedding`.

    Parameters
    ----------
    name
        Of the column.
    label
        For tables and figures.
    group
        What is computed together: one of ``GROUPS``.
    higher_is_better
        The direction.
    summary
        One sentence.
    """

    name: str
    label: str
    group: str
    higher_is_better: bool
    summary: str


def _metrics(group: str, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(name, label, group, True, summary) for name, label, summary in rows)


#: Every score, in the order of tables; all are better when higher.
METRICS: tuple[Metric, ...] = (
    *_metrics(
        "scib",
        ("isolated_labels", "Isolated labels", "Silhouette of the types in the fewest batches."),
        ("nmi_kmeans", "k-means NMI", "NMI of types with as many k-means clusters."),
        ("ari_kmeans", "k-means ARI", "Adjusted Rand index of types with k-means clusters."),
        ("silhouette_label", "Silhouette", "Silhouette of types, scaled to 0..1."),
        ("clisi", "cLISI", "Purity of types in neighbourhoods of 90 cells."),
        ("bras", "BRAS", "Mixing of batches within types, by an adapted silhouette."),
        ("ilisi", "iLISI", "Mixing of batches in neighbourhoods of 90 cells."),
        ("kbet", "kBET", "Share of neighbourhoods with the batch composition of their type."),
        ("graph_connectivity", "Graph connectivity", "Are cells of a type one connected graph?"),
        ("pcr", "PCR", "Loss of between-batch variance against the unintegrated PCA."),
        ("pcr_within", "PCR within types", "As PCR, beside types; ours, in no mean."),
        ("scib_bio", "Bio conservation", "Mean of scib-metrics' five biology scores."),
        ("scib_batch", "Batch correction", "Mean of scib-metrics' five batch scores."),
        ("scib_total", "scIB total", "0.6 biology + 0.4 batch, not min-max scaled."),
        ("unique_rows", "Unique rows", "Share of distinct rows: below 1, ties bias neighbours."),
    ),
    *_metrics(
        "clustering",
        ("nmi", "NMI", "Of types with Leiden clusters, at the resolution of best NMI."),
        ("ari", "ARI", "Adjusted Rand index, same clusters."),
        ("ami", "AMI", "Adjusted mutual information, same clusters."),
        ("fmi", "FMI", "Fowlkes-Mallows index, same clusters."),
        ("nmi_fine", "NMI, fine", "As NMI, for the fine types, at their own best resolution."),
        ("ari_fine", "ARI, fine", "As ARI, for the fine types."),
        ("ami_fine", "AMI, fine", "As AMI, for the fine types."),
        ("fmi_fine", "FMI, fine", "As FMI, for the fine types."),
    ),
    *_metrics(
        "local",
        ("knn_label_entropy", "kNN label purity", "1 - entropy of types among 15 neighbours."),
    ),
    *_metrics(
        "scgraph",
        ("scgraph", "scGraph", "Weighted correlation of distances between types (Corr-Weighted)."),
        ("scgraph_rank", "scGraph rank", "Rank correlation of distances between types."),
        ("scgraph_corr", "scGraph corr", "Correlation of distances between types."),
        ("scgraph_umap", "scGraph, UMAP", "scGraph of the embedding's UMAP, as published."),
        ("scgraph_umap_rank", "scGraph rank, UMAP", "Its rank correlation."),
        ("scgraph_umap_corr", "scGraph corr, UMAP", "Its unweighted correlation."),
    ),
    *_metrics(
        "classify",
        ("xgb_accuracy", "XGBoost accuracy", "Of types, 5 folds."),
        ("xgb_precision", "XGBoost precision", "Macro average over types, 5 folds."),
        ("xgb_recall", "XGBoost recall", "Macro average over types, 5 folds."),
        ("xgb_f1", "XGBoost F1", "Macro average over types, 5 folds."),
        ("knn_accuracy", "kNN accuracy", "15 neighbours, 5 folds."),
        ("knn_f1", "kNN F1", "15 neighbours, macro average over types, 5 folds."),
        ("knn_f1_fine", "kNN F1, fine", "As kNN F1, for the fine types."),
        ("logistic_accuracy", "Logistic accuracy", "Linear classifier, 5 folds."),
        ("logistic_f1", "Logistic F1", "Linear classifier, macro average over types, 5 folds."),
        ("lobo_accuracy", "Unseen batch accuracy", "15 neighbours from the other batches."),
        ("lobo_f1", "Unseen batch F1", "15 neighbours from the other batches, macro average."),
    ),
    *_metrics(
        "trajectory",
        ("trajectory", "Trajectory", "Rank agreement of pseudotime with the unintegrated one."),
        (
            "trajectory_every",
            "Trajectory, every component",
            "The same without scanpy's cut of leading diffusion components; ours.",
        ),
    ),
)
#: Group -> columns that describe and do not rank.
DESCRIPTIONS = {
    "clustering": ("n_clusters", "resolution"),
    "trajectory": ("diffusion_eigenvalue",),
    "classify": tuple(f"xgb_{x}_sd" for x in ("accuracy", "precision", "recall", "f1")),
}
#: Names of the groups, each computed together, in the order of ``METRICS``.
GROUPS = tuple(dict.fromkeys(metric.group for metric in METRICS))
