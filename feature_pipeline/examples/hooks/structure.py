"""Reading macromolecular structures with gemmi, the same way in every hook.

Chain names and residue numbers are the authors' (`auth_asym_id`, `auth_seq_id`, insertion code),
the ones that papers use.
"""

import gemmi
from contract import Record

SUFFIXES = (".cif", ".cif.gz", ".pdb", ".pdb.gz", ".ent", ".ent.gz")


def read_structure(record: Record) -> gemmi.Structure:
    """Return the record's structure with entities and polymers assigned; it has at least one atom.

    Raises:
        contract.Reject: The record has no structure file.
        ValueError, RuntimeError: The file is not a structure, or has no atoms.
    """
    path = record.file(*SUFFIXES)
    structure = gemmi.read_structure(str(path))
    if not structure or not structure[0].count_atom_sites():
        raise ValueError(f"{path.name} has no atoms")
    structure.setup_entities()
    return structure


def is_peptide(polymer: gemmi.ResidueSpan) -> bool:
    """Return whether these residues are a polypeptide, of L or D amino acids."""
    kinds = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
    return polymer.check_polymer_type() in kinds


def peptides(model: gemmi.Model) -> dict[str, list[gemmi.Residue]]:
    """Return the residues of each peptide chain by chain name.

    If a position has two kinds of residue (microheterogeneity), the first in the file counts.
    """
    polymers = {chain.name: chain.get_polymer() for chain in model}
    return {name: list(p.first_conformer()) for name, p in polymers.items() if is_peptide(p)}


def parent_letter(residue: gemmi.Residue) -> str:
    """Return the one-letter code of the residue or of its parent, M for MSE; X if it has none."""
    code = gemmi.find_tabulated_residue(residue.name).one_letter_code.strip().upper()
    return code or "X"


def sequence(residues: list[gemmi.Residue]) -> str:
    """Return the one-letter sequence of the residues that have coordinates; X has no parent."""
    return "".join(map(parent_letter, residues))
