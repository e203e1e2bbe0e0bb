"""The example hooks, run as their definitions say, over the example structures.

What is expected comes from the files by another reader (Biopython, or their text), from the
literature, or is counted again from what the rows claim; never from the hook's own code.
"""

import ast
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gemmi
import pytest
import yaml
from Bio.Align import substitution_matrices
from Bio.PDB import MMCIFParser, PDBParser
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.Polypeptide import PPBuilder

from feature_pipeline.examples import records as examples
from feature_pipeline.model.columns import ColumnFormat, ColumnType, decode_row
from feature_pipeline.model.definition import Cardinality, HookDefinition
from feature_pipeline.model.records import Record, RecordBatch, Source, check_batch_key

PACKAGE = Path(examples.__file__).parents[1]
HOOKS = PACKAGE / "examples" / "hooks"
HOOK_NAMES = ("pockets", "structure_qc", "alignments", "has_protein")
TOO_SMALL = {"pdb:1YJP", "pdb:7ETN"}
UNREADABLE = {"pdb:4Q9R"}
ALL = {record.id for record in examples.example_records()}


@dataclass(frozen=True)
class Result:
    """What a hook left, by record id."""

    exit_status: int
    log: str
    features: dict[str, list[dict[str, Any]]]
    rejections: dict[str, str]
    errors: dict[str, dict[str, Any]]
    lines: int
    progress: list[dict[str, Any]]


def definition(hook: str) -> HookDefinition:
    document = yaml.safe_load((PACKAGE / "defs" / hook / "defs.yaml").read_text("utf-8"))
    assert document.keys() == {"type", "attributes"}
    assert document["type"] == "feature_pipeline.FeatureHook"
    return HookDefinition.model_validate(document["attributes"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run_program(
    folder: Path,
    code: Iterable[Path],
    command: list[str],
    config: dict[str, Any],
    records: Iterable[examples.ExampleRecord],
) -> Result:
    """Run a hook through the contract's folders, its code files flat in a folder of their own."""
    for name in ("code", "in", "files", "out"):
        (folder / name).mkdir()
    for path in code:
        shutil.copy(path, folder / "code")
    with (folder / "in" / "records.jsonl").open("w", encoding="utf-8") as lines:
        for record in records:
            (folder / "files" / record.id).mkdir()
            for name, path in record.files.items():
                shutil.copy(path, folder / "files" / record.id / name)
            lines.write(json.dumps({"id": record.id, "metadata": record.metadata}) + "\n")
    (folder / "in" / "config.json").write_text(json.dumps(config), "utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "OSA_IN": str(folder / "in"),
        "OSA_FILES": str(folder / "files"),
        "OSA_OUT": str(folder / "out"),
        "OSA_HOOK_NAME": "hook_under_test",
    }
    arguments = [sys.executable if word == "python" else word for word in command]
    done = subprocess.run(
        arguments, cwd=folder / "code", env=environment, capture_output=True, text=True, timeout=120
    )
    out = folder / "out"
    if done.returncode != 0:
        return Result(done.returncode, done.stderr, {}, {}, {}, 0, [])
    features, rejections, errors = (
        read_lines(out / f"{kind}.jsonl") for kind in ("features", "rejections", "errors")
    )
    return Result(
        done.returncode,
        done.stderr,
        {line["id"]: line["features"] for line in features},
        {line["id"]: line["reason"] for line in rejections},
        {line["id"]: line for line in errors},
        len(features) + len(rejections) + len(errors),
        read_lines(out / "progress.jsonl"),
    )


def run_hook(folder: Path, hook: str, records: Iterable[examples.ExampleRecord], **config: Any):
    defined = definition(hook)
    code = defined.code_files(PACKAGE / "defs" / hook).values()
    release = defined.release
    return run_program(folder, code, list(release.command), release.config | config, records)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    @cache
    def result(hook: str) -> Result:
        return run_hook(tmp_path_factory.mktemp(hook), hook, examples.example_records())

    return result


def path_of(pdb_id: str) -> Path:
    (record,) = (r for r in examples.example_records() if r.id == f"pdb:{pdb_id}")
    (path,) = record.files.values()
    return path


def parse(pdb_id: str) -> Any:
    """The structure by Biopython, which shares no code with gemmi."""
    path = path_of(pdb_id)
    parser = PDBParser(QUIET=True) if path.suffix == ".pdb" else MMCIFParser(QUIET=True)
    return parser.get_structure(pdb_id, str(path))


def atom_sites(pdb_id: str) -> list[tuple[str, str, str]]:
    """Element, residue name and `chain residue` of every atom site of model 1, from the text."""
    path = path_of(pdb_id)
    if path.suffix == ".pdb":
        text = path.read_text().split("ENDMDL")[0]
        atoms = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
        return [(a[76:78].strip(), a[17:20].strip(), a[21:27]) for a in atoms]
    data = MMCIF2Dict(str(path))
    rows = zip(
        data["_atom_site.type_symbol"],
        data["_atom_site.auth_comp_id"],
        data["_atom_site.auth_asym_id"],
        data["_atom_site.auth_seq_id"],
        data["_atom_site.pdbx_PDB_model_num"],
        strict=True,
    )
    return [
        (e, name, f"{chain} {number}") for e, name, chain, number, model in rows if model == "1"
    ]


class TestEveryHook:
    @pytest.mark.parametrize("hook", HOOK_NAMES)
    def test_gives_every_record_exactly_one_outcome(self, results, hook):
        result = results(hook)
        assert result.exit_status == 0, result.log
        assert result.lines == len(ALL)
        assert result.features.keys() | result.rejections.keys() | result.errors.keys() == ALL
        assert [line["message"].split(": ")[0] for line in result.progress] == [
            record.id for record in examples.example_records()
        ]

    @pytest.mark.parametrize("hook", HOOK_NAMES)
    def test_an_unreadable_record_is_errored_and_stops_no_other(self, results, hook):
        result = results(hook)
        assert result.errors.keys() == UNREADABLE
        (error,) = result.errors.values()
        assert error["error"] == "ValueError: 4q9r_min.cif has no atoms"
        assert error["retryable"] is False
        assert "Traceback" in result.log

    @pytest.mark.parametrize(
        ("hook", "rejected"),
        [
            ("pockets", TOO_SMALL | {"pdb:3JQH"}),
            ("structure_qc", set()),
            ("alignments", TOO_SMALL),
            ("has_protein", TOO_SMALL),
        ],
    )
    def test_a_structure_that_is_too_small_is_rejected_with_a_reason(self, results, hook, rejected):
        reasons = results(hook).rejections
        assert reasons.keys() == rejected
        assert all(re.search(r"\d", reason) for reason in reasons.values())

    @pytest.mark.parametrize("hook", HOOK_NAMES)
    def test_rows_are_as_declared(self, results, hook):
        feature = definition(hook).feature
        names = {column.name for column in feature.columns}
        for record_id, rows in results(hook).features.items():
            assert feature.cardinality is Cardinality.MANY or len(rows) <= 1, record_id
            for row in rows:
                assert row.keys() == names
                decode_row(feature.columns, row)

    @pytest.mark.parametrize("hook", ["structure_qc", "alignments", "has_protein"])
    def test_a_second_run_has_equal_output(self, results, hook, tmp_path):
        again = run_hook(tmp_path, hook, reversed(examples.example_records()))
        first = results(hook)
        assert again.features == first.features
        assert again.rejections == first.rejections
        assert again.errors == first.errors

    def test_a_record_without_a_structure_file_is_rejected(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no structure")
        record = examples.ExampleRecord("notes", {}, {"notes.txt": tmp_path / "notes.txt"})
        folder = tmp_path / "run"
        folder.mkdir()
        assert (
            "no file ending in .cif"
            in run_hook(folder, "has_protein", [record]).rejections["notes"]
        )

    def test_compressed_structures_are_read(self, tmp_path):
        packed = tmp_path / "1ubi.pdb.gz"
        packed.write_bytes(gzip.compress(path_of("1UBI").read_bytes()))
        record = examples.ExampleRecord("packed", {}, {packed.name: packed})
        folder = tmp_path / "run"
        folder.mkdir()
        (row,) = run_hook(folder, "structure_qc", [record]).features["packed"]
        assert row["amino_acids"] == 76


class TestDefinitions:
    @pytest.mark.parametrize("hook", HOOK_NAMES)
    def test_are_releases_of_this_dataset(self, hook):
        defined = definition(hook)
        assert (defined.name, defined.dataset) == (hook, examples.DATASET)
        assert defined.has_table == (hook != "has_protein")
        code = {file.name for file in defined.hook_release(PACKAGE / "defs" / hook).document.code}
        assert code == {f"{hook}.py", "contract.py", "structure.py"}
        assert defined.release.command == ("python", f"{hook}.py")

    def test_between_them_use_every_column_type(self):
        columns = [column for hook in HOOK_NAMES for column in definition(hook).feature.columns]
        assert {column.type for column in columns} == set(ColumnType)
        assert {column.format for column in columns} == {None, ColumnFormat.DATE}

    def test_hooks_import_nothing_of_the_pipeline(self):
        for path in HOOKS.glob("*.py"):
            imported = imports(path)
            assert "feature_pipeline" not in imported, path
            if path.name == "contract.py":
                assert imported <= sys.stdlib_module_names


def imports(path: Path) -> set[str]:
    problems: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            problems |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            problems.add((node.module or "").split(".")[0])
    return problems


class TestStructureQc:
    @pytest.fixture
    def rows(self, results) -> dict[str, dict[str, Any]]:
        return {
            record_id.removeprefix("pdb:"): row
            for record_id, (row,) in results("structure_qc").features.items()
        }

    def test_facts_of_the_headers(self, rows):
        """As the entries' pages at the wwPDB have them."""
        facts = {
            key: (r["pdb_id"], r["methods"], r["resolution"], r["deposited"], r["space_group"])
            for key, r in rows.items()
        }
        xray = ["X-RAY DIFFRACTION"]
        assert facts["1UBI"] == ("1UBI", xray, 1.8, "1994-02-03", "P 21 21 21")
        assert facts["3ENL"] == ("3ENL", xray, 2.25, "1990-11-13", "P 42 21 2")
        assert facts["7ETN"] == ("7ETN", xray, 0.82, "2021-05-13", "P 1 21 1")
        assert facts["1LCD"] == ("1LCD", ["SOLUTION NMR"], None, "1993-03-25", None)
        assert facts["5PTI"][1:3] == ([*xray, "NEUTRON DIFFRACTION"], 1.0)

    @pytest.mark.parametrize("pdb_id", sorted(i.removeprefix("pdb:") for i in ALL - UNREADABLE))
    def test_counts_are_those_of_the_text(self, rows, pdb_id):
        row, sites = rows[pdb_id], atom_sites(pdb_id)
        hydrogens = sum(element in {"H", "D"} for element, _, _ in sites)
        assert (row["hydrogens"], row["heavy_atoms"]) == (hydrogens, len(sites) - hydrogens)
        assert row["waters"] == len({r for _, name, r in sites if name in {"HOH", "DOD"}})

    def test_chains_residues_and_ligands(self, rows):
        assert rows["1UBI"]["amino_acids"] == 76
        assert rows["3JQH"]["amino_acids"] == 23  # of 26 residues: three positions hold two kinds
        assert rows["1HVR"]["chains"] == [
            {"chain": chain, "polymer": "PeptideL", "residues": 99} for chain in "AB"
        ]
        assert {c["chain"]: (c["polymer"], c["residues"]) for c in rows["1LCD"]["chains"]} == {
            "A": ("PeptideL", 51),
            "B": ("Dna", 11),
            "C": ("Dna", 11),
        }
        assert rows["1LCD"]["models"] == 3
        assert rows["1LCD"]["mean_b_factor"] is None
        assert rows["1GBT"]["ligands"] == ["CA", "GBS", "SO4"]
        assert rows["1A8O"]["ligands"] == []  # selenomethionine is part of the chain
        assert [k for k, row in sorted(rows.items()) if row["has_alternative_conformations"]] == [
            "3JQH", "4CUP", "5PTI",
        ]  # fmt: skip

    def test_cis_peptides_are_those_of_the_cispep_records(self, rows):
        declared = re.findall(r"^CISPEP", path_of("3ENL").read_text(), re.MULTILINE)
        assert rows["3ENL"]["cis_peptides"] == len(declared) == 2
        assert rows["1UBI"]["cis_peptides"] == 0

    @pytest.mark.parametrize("pdb_id", ["1UBI", "3ENL", "4CUP", "1A8O"])
    def test_backbone_regions_agree_with_biopython(self, rows, pdb_id):
        """3ENL, 4CUP and 1A8O bring loops, alternatives and modified residues."""
        (chain,) = parse(pdb_id)[0]
        counts = dict.fromkeys(("alpha", "beta", "left_handed", "elsewhere"), 0)
        for peptide in PPBuilder().build_peptides(chain, aa_only=False):
            for residue, angles in zip(peptide, peptide.get_phi_psi_list(), strict=True):
                if None in angles or residue.get_resname() in {"GLY", "PRO"}:
                    continue
                phi, psi = map(math.degrees, angles)
                if phi <= -30 and -90 <= psi < 50:
                    counts["alpha"] += 1
                elif phi <= -30 and not -150 < psi < 50:
                    counts["beta"] += 1
                elif 30 <= phi <= 90 and -10 <= psi <= 90:
                    counts["left_handed"] += 1
                else:
                    counts["elsewhere"] += 1
        assert rows[pdb_id]["ramachandran_regions"] == counts
        assert counts["elsewhere"] <= 0.02 * sum(counts.values())

    def test_clashes_leave_out_what_a_bond_explains(self, rows):
        """Disulfides and the acylated serine are close for a reason, oxygens at 1.7 Å are not."""
        assert rows["1GBT"]["clashes"] == 0
        assert rows["3ENL"]["clashes"] == 4
        assert rows["5PTI"]["clashes"] == 1

    def test_gaps_and_missing_atoms_are_detected(self, tmp_path):
        lines = path_of("1UBI").read_text().splitlines(keepends=True)
        atoms = [line for line in lines if line.startswith("ATOM")]
        kept = [
            line
            for line in lines
            if not (
                line in atoms and (int(line[22:26]) in {30, 31} or line[12:26] == " O   PHE A  45")
            )
        ]
        assert len(atoms) - sum(line.startswith("ATOM") for line in kept) > 10
        damaged = tmp_path / "damaged.pdb"
        damaged.write_text("".join(kept))
        record = examples.ExampleRecord("damaged", {}, {damaged.name: damaged})
        folder = tmp_path / "run"
        folder.mkdir()
        (row,) = run_hook(folder, "structure_qc", [record]).features["damaged"]
        assert (row["amino_acids"], row["chain_breaks"]) == (74, 1)
        assert row["missing_backbone_atoms"] == 1


# fpocket's own classes (aa.c)
POLAR = {"ARG", "ASN", "ASP", "GLN", "GLU", "HIS", "LYS", "SER", "THR", "TRP", "TYR"}
CHARGE = {"ARG": 1, "LYS": 1, "HIS": 1, "ASP": -1, "GLU": -1}
PARENT = {"MSE": "MET", "CSO": "CYS"}
MONTE_CARLO = ("volume", "fpocket_score")


class TestPockets:
    @pytest.mark.parametrize(
        ("pdb_id", "site"),
        [
            # both catalytic aspartates and both flaps, which lie in two chains of equal numbering
            ("1HVR", {"A:ASP25", "B:ASP25", "A:ILE50", "B:ILE50"}),
            # catalytic triad's histidine and serine, and the floor of the specificity pocket
            ("1GBT", {"A:HIS57", "A:SER195", "A:ASP189"}),
            # the acetyl-lysine site: conserved asparagine and tyrosine
            ("4CUP", {"A:ASN1944", "A:TYR1901"}),
        ],
    )
    def test_the_largest_pocket_is_the_known_site(self, results, pdb_id, site):
        assert site <= set(results("pockets").features[f"pdb:{pdb_id}"][0]["residues"])

    @pytest.mark.parametrize(
        ("pdb_id", "ligand"), [("1HVR", "XK2"), ("1GBT", "GBS"), ("4CUP", "ZYB")]
    )
    def test_the_largest_pocket_is_where_the_ligand_was(self, results, pdb_id, ligand):
        """The hook has not seen the ligand."""
        atoms = [a for r in parse(pdb_id)[0].get_residues() if r.get_resname() == ligand for a in r]
        centroid = sum(a.coord for a in atoms) / len(atoms)
        distances = {
            row["rank"]: math.dist(centroid, [row["centre"][axis] for axis in "xyz"])
            for row in results("pockets").features[f"pdb:{pdb_id}"]
        }
        assert min(distances, key=distances.__getitem__) == 1
        assert distances[1] < 8

    def test_ranks_follow_size(self, results):
        for rows in results("pockets").features.values():
            assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
            assert all(a["alpha_spheres"] >= b["alpha_spheres"] for a, b in pairwise(rows))
            assert all(row["alpha_spheres"] >= 15 for row in rows)
            assert all(row["volume"] > 0 for row in rows)

    def test_lining_residues_are_protein_residues_of_the_file(self, results):
        for record_id, rows in results("pockets").features.items():
            known = {
                f"{r.get_parent().id}:{r.get_resname()}{r.id[1]}{r.id[2].strip()}"
                for r in parse(record_id.removeprefix("pdb:"))[0].get_residues()
                if "CA" in r
            }
            for row in rows:
                assert set(row["residues"]) <= known
                assert len(set(row["residues"])) == len(row["residues"]) > 0

    def test_modified_residues_count_as_their_parents(self, results):
        features = results("pockets").features
        assert any("A:MSE" in name for row in features["pdb:1A8O"] for name in row["residues"])
        assert any("CSO67" in name for row in features["pdb:1HVR"] for name in row["residues"])
        for rows in features.values():
            for row in rows:
                kinds = [re.fullmatch(r".+:(\w{3})-?\d+\w?", name)[1] for name in row["residues"]]
                kinds = [PARENT.get(kind, kind) for kind in kinds]
                assert row["polarity"] == sum(kind in POLAR for kind in kinds)
                assert row["charge"] == sum(CHARGE.get(kind, 0) for kind in kinds)

    def test_druggability_is_relative_to_other_pockets(self, results):
        features = results("pockets").features
        assert [row["druggability"] for row in features["pdb:5PTI"]] == [None]
        for record_id in ALL - UNREADABLE - TOO_SMALL - {"pdb:3JQH", "pdb:5PTI"}:
            assert all(0 <= row["druggability"] <= 1 for row in features[record_id])
        # proteases' sites: HIV-1's took drugs, trypsin's is charged and shallow
        assert features["pdb:1HVR"][0]["druggability"] > 0.5
        assert features["pdb:4CUP"][0]["druggability"] > 0.5
        assert features["pdb:1GBT"][0]["druggability"] < 0.1

    def test_only_monte_carlo_columns_differ_between_runs(self, results, tmp_path):
        again = run_hook(tmp_path, "pockets", examples.example_records()).features
        first = results("pockets").features
        assert again.keys() == first.keys()
        for record_id, rows in first.items():
            for one, other in zip(rows, again[record_id], strict=True):
                for column in MONTE_CARLO:
                    assert one[column] == pytest.approx(other[column], rel=0.2, abs=0.1)
                assert {k: v for k, v in one.items() if k not in MONTE_CARLO} == {
                    k: v for k, v in other.items() if k not in MONTE_CARLO
                }

    def test_an_assembly_can_be_asked_for(self, results, tmp_path):
        """1A8O is a dimer by symmetry, with a pocket that both copies line."""
        (record,) = (r for r in examples.example_records() if r.id == "pdb:1A8O")
        for name in ("one", "nine"):
            (tmp_path / name).mkdir()
        rows = run_hook(tmp_path / "one", "pockets", [record], assembly="1").features["pdb:1A8O"]
        alone = results("pockets").features["pdb:1A8O"]
        assert len(rows) > len(alone)
        copies = [{name.split(":")[0] for name in row["residues"]} for row in rows]
        assert set().union(*copies) == {"A1", "A2"}
        assert {"A1", "A2"} in copies
        refused = run_hook(tmp_path / "nine", "pockets", [record], assembly="9").rejections
        assert refused == {"pdb:1A8O": "the file describes no assembly '9'"}

    def test_a_structure_that_is_too_large_is_rejected(self, tmp_path):
        (record,) = (r for r in examples.example_records() if r.id == "pdb:1UBI")
        refused = run_hook(tmp_path, "pockets", [record], max_residues=75).rejections
        assert refused == {"pdb:1UBI": "too large: 76 protein residues > 75"}


class TestAlignments:
    @pytest.fixture
    def references(self) -> dict[str, str]:
        return definition("alignments").release.config["references"]

    def test_references_match_the_structures(self, references):
        for name, expected in references.items():
            pdb_id, chain = name.split(".")
            structure = gemmi.read_structure(str(path_of(pdb_id)))
            structure.setup_entities()
            polymer = structure[0][chain].get_polymer().first_conformer()
            letters = [gemmi.find_tabulated_residue(residue.name) for residue in polymer]
            assert "".join(r.one_letter_code.upper() for r in letters) == expected, name

    def test_ubiquitin_is_ubiquitin(self, results, references):
        (row,) = results("alignments").features["pdb:1UBI"]
        blosum = substitution_matrices.load("BLOSUM62")
        assert row["score"] == sum(blosum[letter][letter] for letter in references["1UBI.A"])
        assert (row["reference"], row["identity"], row["identities"]) == ("1UBI.A", 1.0, 76)
        assert (row["query_coverage"], row["reference_coverage"], row["gaps"]) == (1.0, 1.0, 0)
        assert row["is_significant"]

    def test_every_chain_finds_its_own_sequence(self, results, references):
        matches = {
            (record_id.removeprefix("pdb:"), row["chain"], row["reference"])
            for record_id, rows in results("alignments").features.items()
            for row in rows
            if row["identity"] == 1.0 and row["is_significant"]
        }
        own = {(*name.split("."), name) for name in references}
        assert matches == own | {("1HVR", "B", "1HVR.A")}

    def test_no_hit_is_an_answer(self, results):
        assert results("alignments").features["pdb:4CUP"] == []
        assert results("alignments").features["pdb:3JQH"] == []

    def test_numbers_follow_from_the_blocks(self, results, references):
        """Score, identities, gaps, ends, bits and expectation, counted again."""
        blosum = substitution_matrices.load("BLOSUM62")
        gapped = 0
        for record_id, rows in results("alignments").features.items():
            for row in rows:
                query = references.get(f"{record_id.removeprefix('pdb:')}.{row['chain']}")
                if query is None:
                    continue
                reference = references[row["reference"]]
                spans = [(*block["query"], *block["reference"]) for block in row["blocks"]]
                pairs = [
                    pair
                    for q1, q2, r1, r2 in spans
                    for pair in zip(query[q1 - 1 : q2], reference[r1 - 1 : r2], strict=True)
                ]
                gaps = [
                    length
                    for a, b in pairwise(spans)
                    for length in (b[0] - a[1] - 1, b[2] - a[3] - 1)
                    if length
                ]
                gapped += bool(gaps)
                identities = sum(a == b for a, b in pairs)
                assert row["score"] == sum(blosum[a][b] for a, b in pairs) - sum(
                    11 + length for length in gaps
                )
                assert row["identities"] == identities
                assert row["mismatches"] == len(pairs) - identities
                assert row["gaps"] == sum(gaps)
                assert row["identity"] == round(identities / (len(pairs) + sum(gaps)), 4)
                assert (row["query_start"], row["query_end"]) == (spans[0][0], spans[-1][1])
                assert (row["reference_start"], row["reference_end"]) == (spans[0][2], spans[-1][3])
                space = len(query) * len(reference)
                assert row["expect"] == pytest.approx(space * 2 ** -row["bit_score"], rel=0.05)
        assert gapped

    def test_significance_is_by_expectation(self, results):
        rows = [row for rows in results("alignments").features.values() for row in rows]
        assert all(row["is_significant"] == (row["expect"] <= 0.001) for row in rows)
        assert {row["is_significant"] for row in rows} == {True, False}
        assert all(row["expect"] <= 0.1 for row in rows)


class TestHasProtein:
    def test_passes_without_rows(self, results):
        features = results("has_protein").features
        assert features == {record_id: [] for record_id in ALL - TOO_SMALL - UNREADABLE}


class TestContract:
    HOOK = """
import datetime
from contract import Reject, Retry, run

def hook(record, config):
    match record.id:
        case "rows": return ({"n": n, "day": datetime.date(2024, 2, 29)} for n in range(2))
        case "row": return {"metadata": record.metadata, "config": config}
        case "none": return None
        case "reject": raise Reject("two\\nlines")
        case "retry": raise Retry("the service did not answer")
        case "bug": return [{}["missing"]]
        case "late": return (1 / (1 - n) for n in range(3))
        case "unwritable": return [{"value": object()}]
        case "nan": return [{"value": float("nan")}]

run(hook)
"""

    def records(self, *ids: str) -> list[examples.ExampleRecord]:
        return [examples.ExampleRecord(i, {"name": i.title()}, {}) for i in ids]

    def run(self, folder: Path, hook: str, records: list[examples.ExampleRecord]) -> Result:
        (folder / "hook.py").write_text(hook, "utf-8")
        run_folder = folder / "run"
        run_folder.mkdir()
        code = [folder / "hook.py", HOOKS / "contract.py"]
        return run_program(run_folder, code, ["python", "hook.py"], {"limit": 3}, records)

    def test_what_a_hook_does_decides_the_outcome(self, tmp_path):
        ids = ("rows", "row", "none", "reject", "retry", "bug", "late", "unwritable", "nan")
        result = self.run(tmp_path, self.HOOK, self.records(*ids))
        assert result.exit_status == 0
        assert math.isnan(result.features.pop("nan")[0]["value"])
        assert result.features == {
            "rows": [{"n": 0, "day": "2024-02-29"}, {"n": 1, "day": "2024-02-29"}],
            "row": [{"metadata": {"name": "Row"}, "config": {"limit": 3}}],
            "none": [],
        }
        assert result.rejections == {"reject": "two\nlines"}
        assert {key: (e["error"], e["retryable"]) for key, e in result.errors.items()} == {
            "retry": ("Retry: the service did not answer", True),
            "bug": ("KeyError: 'missing'", False),
            "late": ("ZeroDivisionError: division by zero", False),
            "unwritable": ("TypeError: object cannot be written as JSON", False),
        }
        assert result.lines == len(ids)

    def test_running_out_of_memory_fails_the_run(self, tmp_path):
        """So that it is tried again with more memory; a record's error would stand."""
        hook = "from contract import run\ndef hook(record, config): raise MemoryError\nrun(hook)\n"
        result = self.run(tmp_path, hook, self.records("large"))
        assert result.exit_status != 0
        assert "MemoryError" in result.log

    def test_outcomes_before_a_crash_are_whole_lines(self, tmp_path):
        hook = """
import os
from contract import run

def hook(record, config):
    if record.id == "crash": os._exit(3)
    return {"text": "x" * 100_000}

run(hook)
"""
        result = self.run(tmp_path, hook, self.records("first", "crash", "last"))
        assert result.exit_status == 3
        (line,) = read_lines(tmp_path / "run" / "out" / "features.jsonl")
        assert line["id"] == "first"

    def test_unreadable_input_fails_the_run(self, tmp_path):
        result = self.run(tmp_path, self.HOOK, self.records("none"))
        assert result.exit_status == 0
        folder = tmp_path / "run"
        (folder / "in" / "records.jsonl").write_text('{"id": "none"}\n{"id": "no')
        done = subprocess.run(
            [sys.executable, "hook.py"],
            cwd=folder / "code",
            env={f"OSA_{n.upper()}": str(folder / n) for n in ("in", "files", "out")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "JSONDecodeError" in done.stderr


class TestReadme:
    TEXT = (PACKAGE / "examples" / "README.md").read_text("utf-8")

    def block(self, language: str) -> str:
        (text,) = re.findall(rf"```{language}\n(.*?)```", self.TEXT, re.DOTALL)
        return text

    def test_the_hook_of_ten_lines_runs_as_declared(self, tmp_path):
        code = self.block("python")
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        defined = HookDefinition.model_validate(yaml.safe_load(self.block("yaml"))["attributes"])
        (tmp_path / "file_sizes.py").write_text(code, "utf-8")
        folder = tmp_path / "run"
        folder.mkdir()
        files = [tmp_path / "file_sizes.py", HOOKS / "contract.py"]
        assert [path.name for path in files] == [Path(path).name for path in defined.release.code]
        command = list(defined.release.command)
        result = run_program(folder, files, command, {}, examples.example_records())
        assert result.features["pdb:1UBI"] == [{"name": "1ubi.pdb", "bytes": 77355}]
        for rows in result.features.values():
            assert [decode_row(defined.feature.columns, row) for row in rows]

    def test_the_shell_commands_run(self, tmp_path):
        for name in ("hooks", "structures"):
            shutil.copytree(PACKAGE / "examples" / name, tmp_path / name)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", self.block("sh")],
            cwd=tmp_path,
            env={"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"id": "pdb:1UBI", "features": []}


class TestRecords:
    def test_batches_are_ones_an_archive_accepts(self):
        batches = examples.example_batches()
        assert {batch.source for batch in batches} == {Source.HARVEST, Source.DEPOSITION}
        for batch in batches:
            check_batch_key(batch.key)
            records = tuple(Record(id=r.id, metadata=r.metadata) for r in batch.records)
            RecordBatch.create(examples.DATASET, batch.key, batch.source, records)
        assert len({batch.key for batch in batches}) == len(batches)
        assert len(examples.example_records()) == len(ALL)

    def test_every_structure_file_is_used_once(self):
        used = [path for record in examples.example_records() for path in record.files.values()]
        stored = {p for p in examples.STRUCTURES.iterdir() if p.suffix in {".cif", ".pdb"}}
        assert sorted(used) == sorted(stored)

    def test_metadata_matches_the_files(self):
        for record in examples.example_records():
            ((name, path),) = record.files.items()
            assert name == path.name
            structure = gemmi.read_structure(str(path))
            info = {tag: structure.info[tag] for tag in structure.info}
            assert record.metadata == {
                "pdb_id": info.get("_entry.id", structure.name).upper(),
                "title": info.get("_struct.title"),
                "method": info.get("_exptl.method"),
            }
            assert record.id == f"pdb:{record.metadata['pdb_id']}"
