"""Pass records with a protein chain and reject the others. The hook has no columns."""

from collections.abc import Mapping
from typing import Any

from contract import Record, Reject, run
from structure import peptides, read_structure


def has_protein(record: Record, config: Mapping[str, Any]) -> None:
    """Pass the record if a peptide chain of model 1 has at least `min_residues` residues."""
    chains = peptides(read_structure(record)[0])
    longest = max(map(len, chains.values()), default=0)
    if longest < config["min_residues"]:
        raise Reject(
            f"no protein: the longest peptide chain has {longest} residues,"
            f" {config['min_residues']} are needed"
        )


if __name__ == "__main__":
    run(has_protein)
