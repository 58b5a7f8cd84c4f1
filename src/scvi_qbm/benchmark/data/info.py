"""What the tables of data sets are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DatasetInfo", "RemoteFile"]


@dataclass(frozen=True)
class RemoteFile:
    """One more file that a set is built from.

    Attributes
    ----------
    url
        Address of the file.
    file_name
        Name in the data folder.
    sha256
        Published SHA-256 of the file, or None where none is published.
    """

    url: str
    file_name: str
    sha256: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of one data set.

    Attributes
    ----------
    name
        What ``load`` takes.
    title
        One line for people.
    kind
        ``"bundled"`` ships inside a dependency, ``"shared"`` is a file that must be at hand,
        ``"download"`` is fetched from ``url``.
    file_name
        Name of the h5ad in the data folder (of the first file, where there are several).
    label_key
        Column of ``obs`` with the cell type.
    citation
        The paper, as authors, year, journal.
    source
        Where ``url``, ``sha256`` and the keys were found.
    url
        Published address, or None where none was found: then ``portal`` says where to look.
    sha256
        Published SHA-256 of the file at ``url``, or None.
    unpack
        Whether the file at ``url`` is gzip-compressed; ``sha256`` is the archive's.
    parts
        Further files that the set is built from.
    counts
        Where the file holds the counts: ``"X"``, ``"raw"`` (``adata.raw.X``), ``"layers/KEY"``, or
        ``"auto"``, the first of layers/counts, raw and X that holds counts.
    rounded
        Whether part of these values are estimated counts, not integers: ``load`` rounds them.
    features
        ``(column of var, value)`` of the genes to keep, where the file holds more than RNA.
    batch_key, fine_label_key
        Columns of ``obs``: technical batch, finer cell type; None where there is none.
    root_key, root_label
        Column of ``obs`` and its value where a reference pseudotime starts, decided from the
        biology (see ``remarks``); None for sets without a trajectory.
    licence
        Licence of the data as its publisher states it, or None where none was found.
    portal
        Web page for a download by hand.
    remarks
        What to know before use.
    """

    name: str
    title: str
    kind: Literal["bundled", "shared", "download"]
    file_name: str | None
    label_key: str
    citation: str
    source: str
    url: str | None = None
    sha256: str | None = None
    unpack: bool = False
    parts: tuple[RemoteFile, ...] = ()
    counts: str = "X"
    rounded: bool = False
    features: tuple[str, str] | None = None
    batch_key: str | None = None
    fine_label_key: str | None = None
    root_key: str | None = None
    root_label: str | None = None
    licence: str | None = None
    portal: str | None = None
    remarks: str = ""
