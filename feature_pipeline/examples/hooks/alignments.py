"""Local alignments of a structure's peptide chains with reference sequences: one row per pair.

Smith-Waterman with affine gaps (Biopython's PairwiseAligner), BLOSUM62, a gap of n residues
costing 11 + n, as protein BLAST does it. Where several alignments score the same, the aligner's
first is reported, which is always the same one.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from Bio.Align import PairwiseAligner, substitution_matrices
from contract import Record, Reject, run
from structure import peptides, read_structure, sequence

# Karlin-Altschul parameters of gapped BLOSUM62 with these gap costs, as in NCBI BLAST's tables
# (blast_stat.c, blosum62_values). They turn raw scores into bits and an expected number of chance
# hits. No correction for the edges of short sequences is made, so expectations are somewhat
# larger than BLAST's.
LAMBDA, K = 0.267, 0.041

BLOSUM62 = substitution_matrices.load("BLOSUM62")
ALIGNER = PairwiseAligner(
    mode="local", substitution_matrix=BLOSUM62, open_gap_score=-12, extend_gap_score=-1
)


def alignments(record: Record, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair whose expectation is at most `max_expect`, by chain and reference.

    Raises:
        Reject: No peptide chain of model 1 has `min_length` residues with coordinates.
    """
    chains = {name: sequence(r) for name, r in peptides(read_structure(record)[0]).items()}
    queries = {name: s for name, s in chains.items() if len(s) >= config["min_length"]}
    if not queries:
        longest = max(map(len, chains.values()), default=0)
        raise Reject(
            f"no peptide chain to align: the longest has {longest} residues,"
            f" {config['min_length']} are needed"
        )
    for (chain, query), (name, reference) in product(queries.items(), config["references"].items()):
        row = align(query, reference, config)
        if row is not None:
            yield {"chain": chain, "reference": name, **row}


def align(query: str, reference: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the best alignment of the two, or None if chance explains it.

    Positions count from 1.
    """
    score = ALIGNER.score(known(reference), known(query))
    # the search space is this pair's: expectations do not depend on which other references exist
    expect = K * len(query) * len(reference) * math.exp(-LAMBDA * score)
    if score <= 0 or expect > config["max_expect"]:
        return None
    best = ALIGNER.align(known(reference), known(query))[0]
    counts = best.counts()
    aligned = counts.identities + counts.mismatches
    reference_blocks, query_blocks = best.aligned
    return {
        "score": round(score),
        "bit_score": round((LAMBDA * score - math.log(K)) / math.log(2), 1),
        "expect": float(f"{expect:.3g}"),
        "is_significant": expect <= config["significant_expect"],
        "identity": round(counts.identities / (aligned + counts.gaps), 4),
        "identities": counts.identities,
        "mismatches": counts.mismatches,
        "gaps": counts.gaps,
        "query_length": len(query),
        "query_coverage": round(aligned / len(query), 4),
        "reference_coverage": round(aligned / len(reference), 4),
        "query_start": int(query_blocks[0][0]) + 1,
        "query_end": int(query_blocks[-1][1]),
        "reference_start": int(reference_blocks[0][0]) + 1,
        "reference_end": int(reference_blocks[-1][1]),
        "blocks": [
            {"query": [int(q[0]) + 1, int(q[1])], "reference": [int(r[0]) + 1, int(r[1])]}
            for q, r in zip(query_blocks, reference_blocks, strict=True)
        ],
    }


def known(letters: str) -> str:
    """Return the sequence in the matrix's alphabet; selenocysteine, for example, is unknown."""
    return "".join(letter if letter in BLOSUM62.alphabet else "X" for letter in letters)


if __name__ == "__main__":
    run(alignments)
