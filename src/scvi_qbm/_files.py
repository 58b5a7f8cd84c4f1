"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock


def check_target(path: str | os.PathLike[str], *, folder: bool = False) -> Path:
    """Where a result is to go, links followed; an OSError says why it cannot be written there.

    Before long work, so that nothing is lost after it. A folder need not be there yet.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        if folder and not target.is_dir():
            raise NotADirectoryError(f"{path} is a file; a directory is wanted.")
        if not folder and target.is_dir():
            raise IsADirectoryError(f"{path} is a directory; a file is wanted.")
        if not folder and not target.is_file():
            raise OSError(f"{path} is a device or a pipe; a plain file is wanted.")
    parent = target if folder and target.exists() else target.parent
    while folder and not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise FileNotFoundError(f"no such directory: {parent}")
    try:
        # What is written beside the target has a longer name than it.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=parent):
            pass
    except OSError as error:
        raise OSError(f"Nothing can be written to {path}: {error.strerror}.") from error
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], *, alone: bool = False) -> Iterator[Path]:
    """A name to write to; the file takes the place of ``path`` once all is written.

    A link stays one: what it points to is replaced. If the block raises, what was written is
    removed and ``path`` is as it was. ``alone`` says that no other process writes this file: what
    killed ones have left of it is removed.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a plain file, and is not replaced.")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp") if alone else ():
        left.unlink(missing_ok=True)
    # A new name, made exclusively: nothing that was put there is followed.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(directory: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Hold a folder's lock, which the system gives back even if the process is killed.

    A BlockingIOError says that another process is ``doing`` something there.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(Path(directory) / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another process is {doing} in {directory}. Wait for it, or name another directory."
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file says; a ValueError names a damaged file and what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged (it is not JSON: {error}). {remedy}") from error
