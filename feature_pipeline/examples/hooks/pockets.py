"""Pockets of a structure's protein, detected with fpocket-rs: one row per pocket.

Only the protein is analysed: model 1, peptide chains, heavy atoms, one conformation. Ligands,
waters and nucleic acids are removed, so a site that one of them fills counts as open.

Rows are ranked by their number of alpha spheres. fpocket's own score and druggability depend on
exposed surface, which ligands and hydrogens hide: they rank the active site of 1HVR first with its
inhibitor in place and last without. The druggability reported here is the published model, which
uses no surface area.

Volumes, and the score that uses them, are Monte Carlo estimates: two runs differ by about 1 %.
"""

import math
from collections.abc import Mapping
from typing import Any

import fpocket_rs
import gemmi
from contract import Record, Reject, run
from structure import is_peptide, parent_letter, read_structure

Pocket = Mapping[str, Any]


def pockets(record: Record, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per pocket, largest first; there may be none.

    Raises:
        Reject: Fewer than `min_atoms` heavy atoms of protein, more than `max_residues` residues, or
            `assembly` names a biological assembly that the file does not describe.
    """
    structure = read_structure(record)
    if (assembly := config.get("assembly")) is not None:
        build_assembly(structure, assembly)
    keep_protein(structure)
    atoms = structure[0].count_atom_sites()
    if atoms < config["min_atoms"]:
        raise Reject(f"too small for pockets: {atoms} protein heavy atoms < {config['min_atoms']}")
    residues = sum(map(len, structure[0]))
    if residues > config["max_residues"]:
        raise Reject(f"too large: {residues} protein residues > {config['max_residues']}")
    names = plain_numbering(structure)
    found = fpocket_rs.detect_pockets(
        structure.make_minimal_pdb(), min_pock_nb_asph=config["min_alpha_spheres"]
    )["pockets"]
    scores = druggability(found)
    order = sorted(range(len(found)), key=lambda i: size_key(found[i]))
    return [
        describe(found[i], names) | {"rank": rank, "druggability": scores[i]}
        for rank, i in enumerate(order, start=1)
    ]


def build_assembly(structure: gemmi.Structure, assembly: str) -> None:
    """Replace model 1 by the named biological assembly; copies of chain A are called A1, A2."""
    if assembly not in {known.name for known in structure.assemblies}:
        raise Reject(f"the file describes no assembly {assembly!r}")
    structure.transform_to_assembly(assembly, gemmi.HowToNameCopiedChain.AddNumber)
    structure.setup_entities()


def keep_protein(structure: gemmi.Structure) -> None:
    """Keep the heavy atoms of model 1's peptide chains, each in its first conformation."""
    while len(structure) > 1:
        del structure[-1]
    structure.remove_alternative_conformations()
    structure.remove_hydrogens()
    structure.remove_ligands_and_waters()
    structure.remove_empty_chains()
    others = [chain.name for chain in structure[0] if not is_peptide(chain.get_polymer())]
    for name in others:
        structure[0].remove_chain(name)


def plain_numbering(structure: gemmi.Structure) -> dict[int, str]:
    """Number the model's residues from 1 across chains; return the former names by number.

    fpocket-rs identifies a pocket's residues by number alone: in a homodimer, the two aspartates 25
    of an active site would be one, and so would 60 and 60A. Its PDB format has one letter for a
    chain and four digits for a number.
    """
    original = [chain.name for chain in structure[0]]
    structure.shorten_chain_names()
    names: dict[int, str] = {}
    for chain, name in zip(structure[0], original, strict=True):
        for number, residue in enumerate(chain, start=len(names) + 1):
            names[number] = f"{name}:{residue.name}{residue.seqid}"
            make_standard(residue)
            residue.seqid = gemmi.SeqId(number, " ")
    return names


def make_standard(residue: gemmi.Residue) -> None:
    """Name a modified residue like its parent, by which fpocket looks up its amino-acid scales."""
    letter = parent_letter(residue)
    if residue.name == "MSE":
        for atom in residue:
            if atom.name == "SE":
                atom.name, atom.element = "SD", gemmi.Element("S")
    if letter != "X":
        residue.name = gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA)
    residue.het_flag = "A"


def size_key(pocket: Pocket) -> tuple[float, ...]:
    """Return a sort key: largest first; ties by values that do not vary between runs."""
    return -pocket["n_alpha_spheres"], -pocket["as_max_dist"], *sphere_centre(pocket)


def sphere_centre(pocket: Pocket) -> list[float]:
    """Return the mean of the alpha spheres' centres, in Å, to 0.001 Å."""
    columns = list(zip(*pocket["alpha_spheres"], strict=True))[:3]
    return [round(math.fsum(column) / len(column), 3) for column in columns]


def describe(pocket: Pocket, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the pocket's row, without what depends on the other pockets."""
    x, y, z = sphere_centre(pocket)
    lining = sorted(number for _, number in pocket["residues"])
    return {
        "fpocket_score": round(pocket["score"], 4),
        "volume": round(pocket["volume"], 1),
        "alpha_spheres": pocket["n_alpha_spheres"],
        "mean_alpha_sphere_radius": round(pocket["mean_alpha_radius"], 4),
        "extent": round(pocket["as_max_dist"], 3),
        "apolar_alpha_sphere_fraction": round(pocket["apolar_alpha_sphere_proportion"], 4),
        "local_hydrophobic_density": round(pocket["mean_local_hydrophobic_density"], 4),
        "hydrophobicity": round(pocket["hydrophobicity_score"], 3),
        "polarity": pocket["polarity_score"],
        "charge": pocket["charge_score"],
        "centre": {"x": x, "y": y, "z": z},
        "residues": [names[number] for number in lining],
    }


def druggability(found: list[Pocket]) -> list[float | None]:
    """Return each pocket's druggability, between 0 and 1, relative to the same structure's others.

    The model normalises two descriptors over the structure's pockets. With one pocket, or pockets
    that are all alike, there is no such scale and the result is None.

    Source: Schmidtke and Barril, J. Med. Chem. 2010, 53, 5858 (nested logistic models, with the
    coefficients of fpocket's `pscoring.c`).
    """
    density = normalised([pocket["mean_local_hydrophobic_density"] for pocket in found])
    polarity = normalised([pocket["polarity_score"] for pocket in found])
    if density is None or polarity is None:
        return [None] * len(found)
    scores: list[float | None] = []
    for pocket, dense, polar in zip(found, density, polarity, strict=True):
        by_density = logistic(-5.140959 + 6.579424 * dense)
        by_hydrophobicity = logistic(-2.668468 + 0.05581948 * pocket["hydrophobicity_score"])
        by_polarity = logistic(-2.445236 + 2.762473 * polar)
        by_residues = 5.717858 * by_hydrophobicity + 3.985070 * by_polarity
        scores.append(round(logistic(-6.238031 + 4.592376 * by_density + by_residues), 4))
    return scores


def normalised(values: list[float]) -> list[float] | None:
    """Return the values scaled to 0..1, or None when they do not differ."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) for value in values] if high > low else None


def logistic(value: float) -> float:
    """Return the logistic function."""
    return 1 / (1 + math.exp(-value))


if __name__ == "__main__":
    run(pockets)
