"""Quality metrics of a structure with gemmi: one row per record.

Model 1 of the asymmetric unit, as deposited. Counts are of the file's content, not of what a
refinement program would report: electron density is not used.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import gemmi
from contract import Record, run
from structure import peptides, read_structure

BACKBONE = ("N", "CA", "C", "O")
# A C-N bond of a peptide is 1.33 Å; beyond this, residues are missing or the chain ends between.
PEPTIDE_BOND_LIMIT = 2.0
CIS_OMEGA_DEGREES = 30.0


def structure_qc(record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's one row."""
    structure = read_structure(record)
    model = structure[0]
    chains = peptides(model)
    amino_acids = [residue for residues in chains.values() for residue in residues]
    torsions = Counter(region for residues in chains.values() for region in regions(residues))
    return {
        **header(structure),
        **contents(model),
        "amino_acids": len(amino_acids),
        "missing_backbone_atoms": sum(
            name not in residue for residue in amino_acids for name in BACKBONE
        ),
        "chain_breaks": sum(
            not bonded(a, b) for residues in chains.values() for a, b in pairwise(residues)
        ),
        "cis_peptides": sum(is_cis(a, b) for r in chains.values() for a, b in pairwise(r)),
        "clashes": clashes(structure, config["clash_distance"]),
        "ramachandran_regions": {name: torsions[name] for name in REGIONS},
    }


def header(structure: gemmi.Structure) -> dict[str, Any]:
    """Return what the file states about the entry; None for missing values."""
    info = structure.info
    text = {tag: info[tag].strip() for tag in info if info[tag].strip() not in {"", "?", "."}}
    return {
        "pdb_id": text.get("_entry.id", structure.name).upper(),
        "title": text.get("_struct.title"),
        "methods": [m.strip() for m in text.get("_exptl.method", "").split(";") if m.strip()],
        "deposited": text.get("_pdbx_database_status.recvd_initial_deposition_date"),
        # gemmi says 0 where there is none, and gives NMR entries the unit cell of 1 Å that they
        # are deposited with
        "resolution": round(structure.resolution, 3) or None,
        "space_group": (structure.spacegroup_hm or None) if structure.cell.is_crystal() else None,
        "models": len(structure),
    }


def contents(model: gemmi.Model) -> dict[str, Any]:
    """Count the model's content by kind. Alternative conformations each count as atoms."""
    atoms = [cra.atom for cra in model.all()]
    heavy = [atom for atom in atoms if not atom.is_hydrogen()]
    polymers = {chain.name: chain.get_polymer() for chain in model}
    kinds = {name: polymer.check_polymer_type() for name, polymer in polymers.items() if polymer}
    return {
        "chains": [
            {"chain": name, "polymer": kind.name, "residues": polymers[name].length()}
            for name, kind in kinds.items()
        ],
        "ligands": sorted({residue.name for chain in model for residue in chain.get_ligands()}),
        "waters": sum(len(chain.get_waters()) for chain in model),
        "heavy_atoms": len(heavy),
        "hydrogens": len(atoms) - len(heavy),
        "has_alternative_conformations": any(atom.has_altloc() for atom in atoms),
        # NMR entries have zeros where a B factor would be
        "mean_b_factor": round(math.fsum(a.b_iso for a in heavy) / len(heavy), 2) or None,
    }


def bonded(residue: gemmi.Residue, following: gemmi.Residue) -> bool:
    """Return whether a peptide bond joins the two; true if a missing atom leaves it open."""
    if "C" not in residue or "N" not in following:
        return True
    carbon, nitrogen = residue.find_atom("C", "*"), following.find_atom("N", "*")
    return bool(carbon.pos.dist(nitrogen.pos) < PEPTIDE_BOND_LIMIT)


def is_cis(residue: gemmi.Residue, following: gemmi.Residue) -> bool:
    """Return whether the peptide bond between the two is cis. An angle that is unknown is not."""
    omega = math.degrees(gemmi.calculate_omega(residue, following))
    return bonded(residue, following) and abs(omega) < CIS_OMEGA_DEGREES


REGIONS = ("alpha", "beta", "left_handed", "elsewhere")


def regions(residues: list[gemmi.Residue]) -> Iterator[str]:
    """Return the coarse Ramachandran region of each residue with both neighbours.

    Rectangles, not the contours of validation programs: `elsewhere` is where residues other than
    glycine rarely are, not a verdict of an outlier. Glycine and proline, whose maps differ, are
    left out.
    """
    for previous, residue, following in zip(residues, residues[1:], residues[2:], strict=False):
        if residue.name in {"GLY", "PRO"}:
            continue
        if not (bonded(previous, residue) and bonded(residue, following)):
            continue
        angles = gemmi.calculate_phi_psi(previous, residue, following)
        phi, psi = map(math.degrees, angles)
        if not (math.isnan(phi) or math.isnan(psi)):
            yield region(phi, psi)


def region(phi: float, psi: float) -> str:
    """Return the rectangle that contains the angles, in degrees."""
    if -180 <= phi <= -30:
        if -90 <= psi < 50:
            return "alpha"
        if psi >= 50 or psi <= -150:
            return "beta"
    if 30 <= phi <= 90 and -10 <= psi <= 90:
        return "left_handed"
    return "elsewhere"


def clashes(structure: gemmi.Structure, distance: float) -> int:
    """Return pairs of heavy atoms closer than `distance` Å that no bond explains.

    Not counted: residues next to each other, bonds the file declares (LINK, SSBOND, struct_conn),
    disulfides it does not, metals, alternatives of each other, and atoms with symmetry copies.
    """
    search = gemmi.ContactSearch(distance)
    search.ignore = gemmi.ContactSearch.Ignore.AdjacentResidues
    neighbours = gemmi.NeighborSearch(structure[0], gemmi.UnitCell(), distance)
    found = search.find_contacts(neighbours.populate(include_h=False))
    return sum(not is_explained(structure, hit.partner1, hit.partner2) for hit in found)


def is_explained(structure: gemmi.Structure, one: gemmi.CRA, other: gemmi.CRA) -> bool:
    """Return whether the two atoms may be this close."""
    atoms = (one.atom, other.atom)
    return (
        any(atom.element.is_metal for atom in atoms)
        or {atom.name for atom in atoms} == {"SG"}
        # partly occupied atoms that are never there together, without an altloc that says so
        or one.atom.occ + other.atom.occ <= 1
        or structure.find_connection_by_cra(one, other) is not None
    )


if __name__ == "__main__":
    run(structure_qc)
