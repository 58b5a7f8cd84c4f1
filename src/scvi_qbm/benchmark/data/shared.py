"""Eight real sets that are used from a folder at hand: a table, and where to look."""

from __future__ import annotations

import os
from pathlib import Path

from scvi_qbm.benchmark.data.info import DatasetInfo


def _shared(name: str, **known: str) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        kind="shared",
        file_name=f"{name}.h5ad",
        batch_key="batch",
        label_key="cell_type",
        source="uns['source'] of the file, README.md of its folder",
        **known,
    )


_TABLE = (
    _shared(
        name="pbmc_kang_ctrl_8donors",
        title="Blood cells of 8 donors, control: mild batches, realistic size",
        citation="Kang et al. (2018), Nat. Biotechnol. 36, 89-94; GSE96583",
        licence="GPL-3 (the package it was taken from)",
        remarks="12,261 x 1,287; expressed genes kept by muscat; authors' labels.",
    ),
    _shared(
        name="pbmc_3k_4k_facs",
        title="Blood cells of 3 studies: strong batches confounded with type",
        citation="Zheng et al. (2017), Nat. Commun. 8, 14049; SRP073767, 10x Genomics",
        licence="as its parts",
        remarks=(
            "8,284 x 3,959; the FACS study is sorted. cell_type is harmonised; cell_type_orig is "
            "each study's own, so that it cannot be compared across them."
        ),
    ),
    _shared(
        name="pbmc_4studies_11batches",
        title="Blood cells of 4 studies in 11 batches: the largest, strong and mild batches",
        citation="Kang 2018; Zheng 2017; Korsunsky 2019; 10x Genomics",
        licence="as its parts",
        remarks=(
            "20,545 x 1,240, the genes common to all. Its studies are those of two other sets, "
            "with more cells and fewer genes. cell_type_orig: 28 types as the authors name them."
        ),
    ),
    _shared(
        name="pbmc_10x_3techs",
        title="Blood cells by 3 chemistries: small and quick",
        citation="Korsunsky et al. (2019), Nat. Methods 16, 1289-1296",
        licence="GPL>=3 (package); 10x data CC BY 4.0",
        remarks="1,200 x 1,767; HSC (3 cells) and MK (7) are tiny; coarser: cell_type_broad.",
    ),
    _shared(
        name="pancreas_panc8_small",
        title="Pancreas of 5 technologies in miniature",
        citation="Grun 2016; Muraro 2016; Lawlor 2017; Segerstolpe 2016; Baron 2016",
        licence="MIT (the package it was taken from)",
        remarks="500 x 1,947; UMI and read counts mixed; 5 endothelial cells.",
    ),
    _shared(
        name="cellmix_lines_6batches_2kgenes",
        title="Five cell lines in 6 batches: identity known from the genotype",
        citation="Tian et al. (2019), Nat. Methods 16, 479-487; GSE118767",
        licence="MIT (repository); GPL-3 (SuperCell)",
        remarks="2,980 x 1,773.",
    ),
    _shared(
        name="paul15_myeloid",
        title="Mouse myeloid progenitors: haematopoiesis, two arms",
        fine_label_key="paul15_cluster",
        root_key="paul15_cluster",
        root_label="7MEP",
        citation="Paul et al. (2015), Cell 163, 1663-1677; GSE72857",
        licence="MIT (the repositories it was taken from)",
        remarks=(
            "2,660 x 3,451; 16 of the 19 clusters are here. The sort (Lin- cKit+ Sca1-) leaves "
            "out stem cells, so the two arms meet in cells already leaning: 7MEP and 9/10GMP. "
            "7MEP is the root: it is highest in Sox4 and lowest in RNA per cell, early in Gata2 "
            "and Ifitm1, with Mpo on and globin off; PAGA links it fully to both arms (6Ery, "
            "9GMP, 8Mk, 12Baso), and diffusion pseudotime from it orders both; tradeSeq calls it "
            "multipotent. GMP do not descend from MEP: read the granulocyte arm as distance from "
            "the branch point. "
            "uns['iroot'] of the file points at a monocyte (14Mo): do not use it; "
            "monocle_pseudotime is another method's result, not truth."
        ),
    ),
    _shared(
        name="pancreas_endocrinogenesis_e15",
        title="Mouse endocrine pancreas, day 15.5: a branching trajectory, one batch",
        root_key="cell_type",
        root_label="Ductal",
        citation="Bastidas-Ponce et al. (2019), Development 146, dev173849; GSE132188",
        licence="GPL-3 (the package it was taken from)",
        remarks=(
            "3,696 x 1,617 spliced counts. Endocrine cells bud from the ductal epithelium: "
            "Ductal, Ngn3 low EP, Ngn3 high EP, Pre-endocrine, then alpha, beta, delta, epsilon. "
            "Ductal cells cycle, so their own order is the cell cycle's, not differentiation's."
        ),
    ),
)

SHARED: dict[str, DatasetInfo] = {info.name: info for info in _TABLE}


def find_shared(file_name: str) -> Path:
    """Path of a set that must be at hand.

    Looked for in the folder ``SCVI_QBM_DATA_DIR`` names, then in ``../shared/data`` as seen from
    the working directory and from the root of the repository.
    """
    folders = [Path.cwd().parent, Path(__file__).resolve().parents[5]]
    folders = [folder / "shared" / "data" for folder in folders]
    if os.environ.get("SCVI_QBM_DATA_DIR"):
        folders.insert(0, Path(os.environ["SCVI_QBM_DATA_DIR"]).expanduser())
    for folder in folders:
        if (folder / file_name).is_file():
            return folder / file_name
    looked = ", ".join(dict.fromkeys(map(str, folders)))
    raise FileNotFoundError(
        f"{file_name} is not downloaded by scvi_qbm and was not found in {looked}. Put it into "
        "one of these folders, or set SCVI_QBM_DATA_DIR to the folder that holds it."
    )
