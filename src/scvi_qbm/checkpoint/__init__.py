"""Training that goes on where it was killed: what is kept, how it is written and put back."""

from ._callback import TrainingCheckpoint
from ._file import CheckpointError, read_checkpoint, write_checkpoint
from ._settings import run_settings

__all__ = [
    "CheckpointError",
    "TrainingCheckpoint",
    "read_checkpoint",
    "run_settings",
    "write_checkpoint",
]
