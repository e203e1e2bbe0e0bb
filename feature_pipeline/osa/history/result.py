"""What an import counted and proved, for people and for programs."""

from dataclasses import dataclass, field

from feature_pipeline.hooks.output import FEATURES
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.osa.history.proof import Difference
from feature_pipeline.osa.tally import Tally


@dataclass
class HookImport:
    """What was imported of one hook of one dataset; numbers of rows unless stated otherwise."""

    dataset: str
    hook: str
    table_rows: int = 0
    """Rows of the convention's records."""
    other_rows: dict[str, int] = field(default_factory=dict)
    """Rows of records of conventions that do not name the hook, or are not followed."""
    archived_rows: int = 0
    """Rows of hook runs whose output the archive has."""
    stored_rows: int = 0
    """Rows of hook runs whose output the storage has: `sync` takes it."""
    withdrawn_rows: int = 0
    """Rows of records that are withdrawn here."""
    new_rows: int = 0
    new_runs: list[str] = field(default_factory=list)
    """Hook runs whose rows were imported by this pass, or are to be."""
    unchanged_rows: int = 0
    unchanged_runs: int = 0
    """Hook runs that an earlier pass imported."""
    unplaced: dict[str, str] = field(default_factory=dict)
    """By hook run, why its rows are not imported."""
    unplaced_rows: int = 0
    refused: Tally = field(default_factory=Tally)
    """Rows of records, counted as imported, some value of which no outcome can have."""
    proven_rows: int = 0
    """Imported rows that are equal here and there, with `id` and `created_at`."""
    differing: Tally = field(default_factory=Tally)
    """Records with imported rows that are not equal."""
    kept_rows: int = 0
    """Rows of outputs in the archive whose ids are kept."""
    kept_equal_rows: int = 0
    """Those of them that are equal in the artifact which keeps them."""
    kept_refused_rows: int = 0
    undeclared: tuple[str, ...] = ()
    """Columns of the table that the hook does not declare on the server: they are not imported."""

    @property
    def imported_rows(self) -> int:
        """Rows of reconstructed artifacts."""
        return self.new_rows + self.unchanged_rows

    @property
    def missing_rows(self) -> int:
        """Rows in no class: 0 unless something is wrong."""
        classes = self.archived_rows, self.stored_rows, self.withdrawn_rows, self.unplaced_rows
        return self.table_rows - self.imported_rows - sum(classes)

    @property
    def is_proven(self) -> bool:
        """Whether every imported row equals the server's."""
        return (
            not self.differing.number
            and not self.missing_rows
            and self.proven_rows + self.refused.number == self.imported_rows
            and self.kept_equal_rows + self.kept_refused_rows == self.kept_rows
        )

    def to_json(self) -> dict[str, object]:
        """Return the import as JSON."""
        return {
            "dataset": self.dataset,
            "hook": self.hook,
            "table_rows": self.table_rows,
            "archived_rows": self.archived_rows,
            "stored_rows": self.stored_rows,
            "withdrawn_rows": self.withdrawn_rows,
            "new": {"runs": len(self.new_runs), "rows": self.new_rows},
            "unchanged": {"runs": self.unchanged_runs, "rows": self.unchanged_rows},
            "unplaced": {"rows": self.unplaced_rows, "runs": self.unplaced},
            "other_conventions": self.other_rows,
            "kept_ids": {
                "rows": self.kept_rows,
                "equal_rows": self.kept_equal_rows,
                "refused_rows": self.kept_refused_rows,
            },
            "undeclared_columns": list(self.undeclared),
            "refused": {"rows": self.refused.number, "examples": self.refused.examples},
            "proof": {
                "equal_rows": self.proven_rows,
                "differing_records": self.differing.number,
                "examples": self.differing.examples,
                "missing_rows": self.missing_rows,
            },
        }

    def count(self, each: Difference, run_id: str, *, is_kept: bool) -> None:
        """Count the result of the proof for one record, or for rows that are all equal.

        Args:
            each: The result.
            run_id: The hook run.
            is_kept: Whether its rows belong to an output, so that only their ids are kept.
        """
        if each.problem is None:
            self.kept_equal_rows += each.rows if is_kept else 0
            self.proven_rows += 0 if is_kept else each.rows
        elif each.is_refused:
            self.kept_refused_rows += each.rows if is_kept else 0
            self.refused.add(f"hook run {run_id}, {each.problem}", 0 if is_kept else each.rows)
        else:
            self.differing.add(f"hook run {run_id}, {each.problem}")

    def lines(self, *, is_dry: bool) -> list[str]:
        """Return lines for an operator: the classes of the rows, and the proof."""
        runs = counted(len(self.new_runs), "hook run")
        verb = "to import" if is_dry else "imported"
        parts = [
            f"{counted(self.table_rows, 'row')} there",
            f"{self.new_rows:,} {verb} from {runs}",
            *(
                f"{number:,} {text}"
                for number, text in (
                    (self.unchanged_rows, "imported before"),
                    (self.archived_rows, "of outputs in the archive"),
                    (self.stored_rows, "of outputs in the storage, for `osa sync`"),
                    (self.kept_rows, "whose ids are kept"),
                    (self.withdrawn_rows, "of records that are withdrawn here"),
                    (self.unplaced_rows, "cannot be imported"),
                )
                if number
            ),
        ]
        name = f"{self.dataset}/{self.hook}"
        texts = [f"{name}: {', '.join(parts)}"]
        texts += [f"  hook run {run}: {reason}" for run, reason in self.unplaced.items()]
        texts += [
            f"  {counted(rows, 'row')} of records of convention {convention!r} are left out"
            for convention, rows in self.other_rows.items()
        ]
        if self.undeclared:
            columns = first_few(map(repr, self.undeclared))
            texts.append(f"  columns that the server does not declare are left out: {columns}")
        if is_dry:
            return texts
        if self.imported_rows:
            texts.append(f"  {counted(self.proven_rows, 'imported row')} equal here and there")
        if self.refused.number:
            texts.append(
                f"  {counted(self.refused.number, 'row')} with values that no outcome can have:"
                f" kept as they are in {FEATURES}"
            )
            texts += [f"    {example}" for example in self.refused.examples]
        if self.differing.number:
            texts.append(f"  {counted(self.differing.number, 'record')} differ")
            texts += [f"    {example}" for example in self.differing.examples]
        if self.missing_rows:
            texts.append(f"  {self.missing_rows:,} rows are in none of these classes")
        return texts


@dataclass
class ImportResult:
    """The result of one pass."""

    hooks: list[HookImport] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)
    """`<dataset>/<hook>` of followed hooks that this project does not define."""

    @property
    def is_complete(self) -> bool:
        """Whether every row was imported or has another place, and all imported ones are proven."""
        return all(each.is_proven and not each.unplaced for each in self.hooks)
