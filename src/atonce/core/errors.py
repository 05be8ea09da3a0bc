"""The errors a user can meet: each carries one line that names the value, the limit and the remedy.

The command line prints ``str(error)`` and exits non-zero; a traceback is for our own mistakes only.
"""

from __future__ import annotations


class AtonceError(Exception):
    """Base of every error whose message is written for the user."""


class InputError(AtonceError, ValueError):
    """A value, file or combination given by the user cannot be used."""


class DataError(InputError):
    """A data source is missing, damaged or does not fit what is asked of it."""


class ModelFileError(InputError):
    """A model folder, checkpoint or foreign weight file cannot be read."""


class StorageError(AtonceError, OSError):
    """Writing failed (full disk, missing permission); what was there before is untouched."""


class TrainingError(AtonceError, RuntimeError):
    """Training cannot go on (for example a loss that is not finite)."""


class MissingExtraError(AtonceError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
