"""The collections of the QBM-VAE paper and the NeurIPS 2021 bone marrow: a table of addresses.

No address or checksum here is a guess: each stands in the public source named beside it. None
could be tried from where this table was written (no internet there); docs/datasets.md says so too.
"""

from __future__ import annotations

from scvi_qbm.benchmark.data.info import DatasetInfo, RemoteFile

_FIGSHARE = "https://figshare.com/articles/dataset/_/12420968"
_SCIB = "Luecken et al. (2022), Nat. Methods 19, 41-50, doi:10.1038/s41592-021-01336-8"
_SOLAR = (
    "SHA-256: configs/scib_datasets.yaml of github.com/cliecy/"
    "SOLAR-fixed-orthogonal-label-anchors-for-single-cell-reference-mapping at a0b8c6a3 (the "
    "publisher, figshare, gives MD5 only)"
)
_AUTHORS = "keys: model/dataset_param_dict.py of github.com/FengAoWang/QVAE, the paper's code"
_GEO = "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE194122"
_GEO_FILES = "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE194nnn/GSE194122/suppl/"
_BMMC = (
    "Luecken et al. (2021), NeurIPS Datasets and Benchmarks, 'A sandbox for prediction and "
    "integration of DNA, RNA, and proteins in single cells'; GSE194122"
)
_OPEN_PROBLEMS = (
    "address: scripts/create_resources/openproblems_neurips2021_multimodal.sh of "
    "github.com/openproblems-bio/datasets at f5e96635"
)
_CELLXGENE = "https://datasets.cellxgene.cziscience.com/"
_ISLANDER = "scripts/_download_data.sh of github.com/Genentech/Islander at 4620afd2"
_TENX = "https://cf.10xgenomics.com/samples/cell-exp/2.1.0/"
_SCVI_DATA = "https://github.com/YosefLab/scVI-data/raw/master/"

_TABLE = (
    DatasetInfo(
        name="immune",
        title="scIB human immune cells: 33,506 cells of blood and bone marrow, 10 batches",
        file_name="Immune_ALL_human.h5ad",
        url="https://ndownloader.figshare.com/files/25717328",
        sha256="96709b5fa677d5eafc734793a7873a2c763453ba8abddad24c0fba39e0d7f2c8",
        counts="layers/counts",
        rounded=True,
        batch_key="batch",
        label_key="final_annotation",
        citation=_SCIB,
        licence="CC BY 4.0",
        source=(
            "address: openproblems/data/immune_cells.py of github.com/openproblems-bio/"
            f"openproblems; {_SOLAR}; {_AUTHORS}"
        ),
        portal=_FIGSHARE,
        remarks=(
            "2.1 GB. X is scran-normalised. The Villani batch (Smart-seq2) holds estimated counts "
            "that are not integers: they are rounded here; DRVI's benchmark leaves it out."
        ),
    ),
    DatasetInfo(
        name="pancreas",
        title="scIB human pancreas: 16,382 cells, 9 batches of several technologies",
        file_name="human_pancreas_norm_complexBatch.h5ad",
        url="https://ndownloader.figshare.com/files/24539828",
        sha256="97e6dfd65553e4d10aa3ef5d904362970a75c677c31d70fabc9234191a09db8c",
        counts="layers/counts",
        rounded=True,
        batch_key="tech",
        label_key="celltype",
        citation=_SCIB,
        licence="CC BY 4.0",
        source=(
            "address: openproblems/data/pancreas.py of github.com/openproblems-bio/openproblems; "
            f"{_SOLAR}; {_AUTHORS}"
        ),
        portal=_FIGSHARE,
        remarks=(
            "0.3 GB, dense. X is scran-normalised. Part of the count layer is estimated counts, "
            "not integers: they are rounded here."
        ),
    ),
    DatasetInfo(
        name="hlca_core",
        title="Human Lung Cell Atlas, core: about 585,000 cells of healthy lungs, 107 donors",
        file_name="hlca_core.h5ad",
        url=_CELLXGENE + "b53b3bcd-3485-4562-a543-e473dfef3b27.h5ad",
        counts="raw",
        batch_key="donor_id",
        label_key="cell_type",
        fine_label_key="ann_finest_level",
        citation="Sikkema et al. (2023), Nat. Med. 29, 1563-1577, doi:10.1038/s41591-023-02327-2",
        licence="CC BY 4.0",
        source=(
            f"address: {_ISLANDER}, for the collection below (README.md there); it is the core: "
            "scripts/Lung_Mixup.log there counts 542,643 cells after quality control, and issue "
            "1348 of github.com/chanzuckerberg/single-cell-curation lists it with the id of the "
            "data set, 066943a2-fdac-4b29-b348-40cede398e4e; that id and the licence: "
            "src/scvi_hub_models/config/human_lung_cell_atlas.json of github.com/YosefLab/"
            "scvi-hub-models at 97a291ad; counts in raw (seen in another revision): "
            "scripts/write_HLCA_csv.py of github.com/juliaolivieri/equivalence_testing at "
            f"25d206d2; {_AUTHORS}"
        ),
        portal=(
            "https://cellxgene.cziscience.com/collections/6f6d381a-7701-4781-935c-db10d30de293"
        ),
        remarks=(
            "About 6 GB: use max_cells. CELLxGENE gives each revision its own address, and this "
            "one need not be the newest; take 'core' from the portal where it has gone."
        ),
    ),
    DatasetInfo(
        name="fetal_lung",
        title="Human fetal lung, 5 to 22 weeks after conception: 71,752 cells",
        file_name="fetal_lung.h5ad",
        url=_CELLXGENE + "2b55f5c0-aa82-41e8-9d84-915b1d5a797b.h5ad",
        counts="auto",
        batch_key="batch",
        label_key="broad_celltype",
        citation="He et al. (2022), Cell 185, 4841-4860, doi:10.1016/j.cell.2022.11.005",
        licence="CC BY 4.0 (CELLxGENE's terms)",
        source=(
            f"address: {_ISLANDER}; cells, columns and counts in raw: "
            "jupyter_nb/EDA_FetalLung.ipynb there at 7a1c6c80; portals: "
            "Human_fetal_lung_cell_atlas_2022/README.md of github.com/brianpenghe/"
            f"python-genomics (the first author's); {_AUTHORS}"
        ),
        portal=(
            "https://cellxgene.cziscience.com/collections/2d2e2acd-dade-489f-a2da-6c11aa654028 or "
            "https://fetal-lung.cellgeni.sanger.ac.uk/scRNA.html"
        ),
        remarks=(
            "CELLxGENE gives each revision its own address, and this one need not be the newest. "
            "Where it has gone, take the donors' cells from the portal, not the organoids'."
        ),
    ),
    DatasetInfo(
        name="eye",
        title="Human trabecular meshwork and ciliary body (the paper's HTMCB)",
        file_name="eye.h5ad",
        counts="auto",
        batch_key="sample_id",
        label_key="cell_type",
        citation=(
            "no paper of the whole set was found; the 57,709 nuclei of GSE199013 in one of two "
            "candidates (see remarks): van Zyl et al. (2022), PNAS 119, e2200914119, "
            "doi:10.1073/pnas.2200914119"
        ),
        source=(
            "title and columns of the first candidate: a loader of one of its donors (file "
            "68582607411 of the GitHub index searched); size, donors and studies of the second: "
            "files 71104281951, 71080175141 and 71583833826 of that index, which names the "
            f"repository of none of them; {_AUTHORS}"
        ),
        portal="https://cellxgene.cziscience.com/collections",
        remarks=(
            "No address of a file was found, no accession and no id of a collection. Two sets fit "
            "the paper's name. CELLxGENE has 'scRNA-seq of human ocular anterior segment: "
            "trabecular meshwork and ciliary body' (BCM), the same words in the same order. The "
            "other has 1,102,250 nuclei of 70 donors, 57,709 of them from GSE199013, and lacks a "
            "donor that the first holds. Which one the paper used is not known. The keys are the "
            "authors' own; the first set's libraries are in 'sampleid'."
        ),
    ),
    DatasetInfo(
        name="pbmc12k",
        title="PBMC12k: 10x blood cells of one donor, 4k and 8k, as scvi.data.pbmc_dataset",
        file_name="pbmc8k_filtered_gene_bc_matrices.tar.gz",
        url=_TENX + "pbmc8k/pbmc8k_filtered_gene_bc_matrices.tar.gz",
        parts=(
            RemoteFile(
                _TENX + "pbmc4k/pbmc4k_filtered_gene_bc_matrices.tar.gz",
                "pbmc4k_filtered_gene_bc_matrices.tar.gz",
            ),
            RemoteFile(_SCVI_DATA + "gene_info.csv", "gene_info_pbmc.csv"),
            RemoteFile(_SCVI_DATA + "pbmc_metadata.pickle", "pbmc_metadata.pickle"),
        ),
        batch_key="batch",
        label_key="str_labels",
        citation=(
            "Zheng et al. (2017), Nat. Commun. 8, 14049; labels: Lopez et al. (2018), "
            "Nat. Methods 15, 1053-1058"
        ),
        licence="10x: CC BY 4.0; labels: none stated",
        source=(
            "addresses and construction: scvi/data/_built_in_data/_pbmc.py and _dataset_10x.py of "
            f"scvi-tools 1.4.2; {_AUTHORS}"
        ),
        portal="https://github.com/YosefLab/scVI-data",
        remarks=(
            "11,990 cells and 3,346 genes in scvi-tools. The labels come as a pickle, which is "
            "read with nothing but pandas, numpy and plain containers allowed."
        ),
    ),
    DatasetInfo(
        name="bmmc_multiome",
        title="NeurIPS 2021 bone marrow, RNA of the multiome, 12 donors at 4 sites",
        file_name="GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad",
        url=(
            _GEO_FILES
            + "GSE194122%5Fopenproblems%5Fneurips2021%5Fmultiome%5FBMMC%5Fprocessed%2Eh5ad%2Egz"
        ),
        unpack=True,
        counts="layers/counts",
        features=("feature_types", "GEX"),
        batch_key="batch",
        label_key="cell_type",
        citation=_BMMC,
        source=f"{_OPEN_PROBLEMS}; {_AUTHORS}",
        portal=_GEO,
        remarks="The file also holds ATAC peaks: only genes are loaded.",
    ),
    DatasetInfo(
        name="bmmc_cite",
        title="NeurIPS 2021 bone marrow, RNA of CITE-seq, 12 donors at 4 sites",
        file_name="GSE194122_openproblems_neurips2021_cite_BMMC_processed.h5ad",
        url=(
            _GEO_FILES
            + "GSE194122%5Fopenproblems%5Fneurips2021%5Fcite%5FBMMC%5Fprocessed%2Eh5ad%2Egz"
        ),
        sha256="b9b50fade9349719cba23c97c6515d3501a32ee3735fe95fe51221d2e8a5f361",
        unpack=True,
        counts="layers/counts",
        features=("feature_types", "GEX"),
        batch_key="batch",
        label_key="cell_type",
        citation=_BMMC,
        licence="CC BY 4.0 (as scvi-hub states it)",
        source=(
            f"{_OPEN_PROBLEMS}; SHA-256 and licence: src/scvi_hub_models/config/neurips_cite.json "
            f"of github.com/YosefLab/scvi-hub-models at 7a5886ec; {_AUTHORS}"
        ),
        portal=_GEO,
        remarks="The file also holds surface proteins: only genes are loaded.",
    ),
)

COLLECTIONS: dict[str, DatasetInfo] = {info.name: info for info in _TABLE}
