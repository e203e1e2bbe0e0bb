"""The choice for rows that only the server has; importing it costs nothing."""

from enum import StrEnum


class OnlyThere(StrEnum):
    """What becomes of the server's rows that the archive does not have."""

    REFUSE = "refuse"
    KEEP = "keep"
    """They are copied to the new table as they are."""
    DROP = "drop"
    """They stay in the old table only."""
