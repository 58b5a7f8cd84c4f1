"""Files from the network: cached, resumed where they broke off, checked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scvi_qbm._files import read_json, replacing

# Shows the bytes that are here, and how many there will be.
_Show = Callable[[int, int | None], None]
_CHUNK = 1 << 20
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two reads
_ATTEMPTS = 4  # without a byte more
_PAUSE = 1.0  # seconds before a broken connection is tried again


class DownloadError(RuntimeError):
    """A file could not be had; the message says how to put it in place by hand."""


class ChecksumError(DownloadError):
    """A file is not the one that was published, or not the one recorded before."""


def data_dir() -> Path:
    """Folder of the data files.

    Returns
    -------
    pathlib.Path
        ``SCVI_QBM_DATA_DIR`` of the environment, else pooch's cache for ``scvi-qbm``; it may not
        exist yet.
    """
    import pooch

    chosen = os.environ.get("SCVI_QBM_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("scvi-qbm"))


def fetch(
    url: str | None,
    file_name: str,
    *,
    sha256: str | None = None,
    unpack: bool = False,
    portal: str | None = None,
    progress: bool = True,
) -> Path:
    """Path of a file of the data folder, downloaded on first use.

    A download that broke off is continued (HTTP Range) from ``<name>.part``, also in a later call,
    as long as the server still has the same version. The file gets its own name only when it is
    whole and its SHA-256 is right. Every later use is checked too: against the published SHA-256,
    or, where none is published, against the one recorded at first use in ``<name>.sha256.json``.
    Let one process at a time download a file: they would share its part.
    """
    folder = data_dir()
    target = folder / file_name
    published = folder / f"{file_name}.gz" if unpack else target
    if not target.exists() and not published.exists():
        if url is None:
            raise FileNotFoundError(
                f"No published address is known for {file_name}. Download it from {portal} and "
                f"put it at {target}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, published, sha256, progress)
    if unpack and not target.exists():
        if sha256 is not None:
            _check(published, sha256, "published", url)
        _unpack(published, target)
        _record(target, url)
        published.unlink()
        return target
    recorded = None if sha256 is not None and not unpack else _recorded(target)
    if recorded is not None:
        _check(target, recorded, f"recorded in {_record_path(target).name}", url)
    elif sha256 is not None and not unpack:
        _check(target, sha256, "published", url)
    else:
        _record(target, url)
    return target


def _by_hand(url: str, path: Path) -> str:
    return f"To do it by hand, download it yourself from {url} and put it at {path}."


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, expected: str, origin: str, url: str | None) -> None:
    found = _digest(path)
    if found != expected.lower():
        raise ChecksumError(
            f"{path} has SHA-256 {found}, but {expected} is {origin}. Delete the file to download "
            "it again; if it changed on purpose, delete the record beside it as well."
            + ("" if url is None else f" {_by_hand(url, path)}")
        )


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _recorded(path: Path) -> str | None:
    record = _record_path(path)
    if not record.exists():
        return None
    said = read_json(record, "Delete it, if you trust the file beside it.")
    return str(said["sha256"])


def _record(path: Path, url: str | None) -> None:
    record = _record_path(path)
    digest = _digest(path)
    with replacing(record) as temporary:
        said = {"file": path.name, "sha256": digest, "url": url}
        temporary.write_text(json.dumps(said, indent=1))
    warnings.warn(
        f"No SHA-256 is published for {path.name}. That of this copy ({digest}) is recorded in "
        f"{record.name}, and later uses are checked against it.",
        UserWarning,
        stacklevel=4,
    )


def _unpack(archive: Path, target: Path) -> None:
    unpacked = target.with_name(f"{target.name}.unpacking")
    try:
        with gzip.open(archive, "rb") as source, unpacked.open("wb") as out:
            shutil.copyfileobj(source, out, _CHUNK)
    except (OSError, EOFError) as error:
        unpacked.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise DownloadError(
            f"{archive} is not a whole gzip file ({error}). Delete it and download it again."
        ) from error
    os.replace(unpacked, target)


def _download(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    part = _Part(path, url, sha256 is not None)
    with _bar(path.name, progress) as show:
        part.complete(show)
    if sha256 is not None and (found := _digest(part.path)) != sha256.lower():
        part.path.unlink()
        raise ChecksumError(
            f"What came from {url} has SHA-256 {found} and is not the published file ({sha256}). "
            "It was deleted. " + _by_hand(url, path)
        )
    os.replace(part.path, path)


class _Part:
    """A file on its way: ``<name>.part``, and beside it what the server said of it.

    ``verified``: whether the whole will be compared with a published checksum; only then is a part
    continued that the server gave without ETag or date.
    """

    def __init__(self, target: Path, url: str, verified: bool) -> None:
        self.target, self.url, self.verified = target, url, verified
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.answered = False
        self.by_hand = _by_hand(url, target)

    def complete(self, show: _Show) -> None:
        """Go on until the file is whole; DownloadError where that fails."""
        longest, failures = 0, 0
        while not self._attempt(show):
            size = self._size()
            failures = 0 if size > longest else failures + 1
            longest = max(longest, size)
            if failures == _ATTEMPTS:
                raise DownloadError(
                    f"The connection to {self.url} keeps breaking off; {size} bytes are kept in "
                    f"{self.path}, and the next call goes on from there. {self.by_hand}"
                )
            time.sleep(_PAUSE)
        self.note.unlink(missing_ok=True)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _resume_headers(self) -> dict[str, str]:
        """Headers that ask for the rest of the part, if there is one of this address."""
        try:
            note = json.loads(self.note.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            note = {}  # from the beginning
        validator = note.get("validator")
        if self._size() == 0 or note.get("url") != self.url or not (validator or self.verified):
            return {}
        headers = {"Range": f"bytes={self._size()}-"}
        if validator:
            headers["If-Range"] = validator
        return headers

    def _attempt(self, show: _Show) -> bool:
        """Ask once; whether the file is whole now."""
        import requests
        import urllib3

        headers = {"User-Agent": "scvi-qbm", "Accept-Encoding": "identity"}
        headers |= self._resume_headers()
        try:
            response = requests.get(self.url, headers=headers, stream=True, timeout=_TIMEOUT)
        except requests.RequestException as error:
            if self.answered:
                return False
            raise DownloadError(
                f"No answer from {self.url} ({error}). Is there a network? {self.by_hand}"
            ) from error
        self.answered = True
        with response:
            if response.status_code == 416 and "Range" in headers:
                # The part is not a beginning of what the server has now.
                self.path.unlink()
                return False
            start, total = self._begin(response)
            show(start, total)
            try:
                with self.path.open("ab" if start else "wb") as out:
                    while chunk := response.raw.read(_CHUNK, decode_content=False):
                        out.write(chunk)
                        show(start := start + len(chunk), total)
            except (requests.RequestException, urllib3.exceptions.HTTPError):
                return False
        return total is None or self._size() == total

    def _begin(self, response: Any) -> tuple[int, int | None]:
        """First byte that comes and the size of the whole; note what the part belongs to."""
        status = response.status_code
        if status not in (200, 206):
            raise DownloadError(
                f"{self.url} answered HTTP {status} {response.reason}. {self.by_hand}"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DownloadError(
                f"{self.url} answered with a web page, not with a file. {self.by_hand}"
            )
        length = response.headers.get("Content-Length")
        start = 0
        if status == 206:
            start = int(response.headers["Content-Range"].split()[1].split("-")[0])
            if start != self._size():
                self.path.unlink()
                raise DownloadError(
                    f"{self.url} answered with another range than asked for. Try again. "
                    + self.by_hand
                )
        etag = response.headers.get("ETag", "")
        # Only a strong ETag promises the same bytes.
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        self.note.write_text(json.dumps({"url": self.url, "validator": validator}))
        return start, None if length is None else start + int(length)


@contextlib.contextmanager
def _bar(name: str, shown: bool) -> Iterator[_Show]:
    from rich import progress as parts
    from rich.console import Console

    columns = (parts.TextColumn("{task.description}"), parts.BarColumn(), parts.DownloadColumn())
    columns += (parts.TransferSpeedColumn(), parts.TimeRemainingColumn())
    console = Console(stderr=True)
    with parts.Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
