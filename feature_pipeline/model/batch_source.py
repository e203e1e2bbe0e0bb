"""The origin of a batch."""

from enum import StrEnum


class Source(StrEnum):
    """The origin of a batch. Storage treats all alike."""

    DEPOSITION = "deposition"
    HARVEST = "harvest"
    FORK = "fork"
    IMPORT = "import"
