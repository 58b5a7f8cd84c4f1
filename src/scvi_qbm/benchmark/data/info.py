"""What the tables of data sets are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RemoteFile:
    """One more file that a set is built from."""

    url: str
    file_name: str  # in the data folder
    sha256: str | None = None  # None where none is published


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of one data set; None where nothing was found or there is none.

    A ``"bundled"`` set ships inside a dependency, a ``"shared"`` one is a file that must be at
    hand, a ``"download"`` is fetched from ``url``.
    """

    name: str  # what `load` takes
    title: str  # one line for people
    file_name: str | None  # in the data folder; of the first file, where there are several
    label_key: str  # column of obs with the cell type
    citation: str  # authors, year, journal
    source: str  # where url, sha256 and the keys were found
    kind: Literal["bundled", "shared", "download"] = "download"
    url: str | None = None  # None: look at `portal`
    sha256: str | None = None  # as published, of the file at `url`
    unpack: bool = False  # whether that file is gzip-compressed
    parts: tuple[RemoteFile, ...] = ()
    # Where the file holds the counts: "X", "raw" (adata.raw.X), "layers/KEY", or "auto", the first
    # of layers/counts, raw and X that holds counts.
    counts: str = "X"
    rounded: bool = False  # whether some are estimates, which `load` rounds
    # (column of var, value) of the genes to keep, where the file holds more than RNA.
    features: tuple[str, str] | None = None
    batch_key: str | None = None  # column of obs: technical batch
    fine_label_key: str | None = None  # column of obs: finer cell type
    # Column of obs and its value where a reference pseudotime starts, decided from the biology
    # (see `remarks`).
    root_key: str | None = None
    root_label: str | None = None
    licence: str | None = None  # of the data, as its publisher states it
    portal: str | None = None  # web page for a download by hand
    remarks: str = ""  # what to know before use
