"""The definition of a hook: its release, its columns, its table."""

import graphlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.code_files import find_code_file
from feature_pipeline.model.columns import RESERVED_COLUMNS, Column, ColumnType, check_columns
from feature_pipeline.model.digest import digest_stream, document_bytes
from feature_pipeline.model.records import RecordFile, check_dataset, check_file_name
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.model.table_limits import MAX_INDEX_COLUMNS, check_table_limits
from feature_pipeline.model.text.quantities import (
    Cpu,
    Duration,
    Size,
    parse_cpu,
    parse_duration,
    parse_size,
)

_IMAGE: Final = re.compile(r"[a-z0-9][a-z0-9._/:-]*@sha256:[0-9a-f]{64}|sha256:[0-9a-f]{64}")
_INDEX_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OWNER: Final = re.compile(r"team:\S+|[^@\s]+@[^@\s]+\.[^@\s]+")

_SHORTEST_FRESHNESS_SECONDS: Final = 60
"""Dagster refuses shorter windows."""

Name = Annotated[str, AfterValidator(check_dataset)]


class Scope(StrEnum):
    """The extent of the records on which an outcome may depend."""

    RECORD = "record"
    """On that record alone, so that records can be computed separately and carried over."""
    BATCH = "batch"
    """On every record of the batch."""


class UnansweredInputs(StrEnum):
    """The treatment of a record that an input hook rejected, or for which it has no answer."""

    SKIP = "skip"
    """The hook does not get it; its outcome is derived from the input's."""
    GIVE = "give"
    """The hook gets it; the line of input features has the verdict and no features."""


class Cardinality(StrEnum):
    """How many rows a record may have."""

    ONE = "one"
    MANY = "many"


class Materialize(StrEnum):
    """When a table is loaded."""

    ALWAYS = "always"
    ON_REQUEST = "on_request"


class Compute(StrEnum):
    """When a hook is run over a batch that has no features yet."""

    AUTOMATICALLY = "automatically"
    FIRST_BATCH = "first_batch"
    """The dataset's first batch automatically, for inspection; the others on request."""
    ON_REQUEST = "on_request"
    ELSEWHERE = "elsewhere"
    """Never: another system runs the hook, and its output is published here."""


class IndexMethod(StrEnum):
    """PostgreSQL's index access methods."""

    BTREE = "btree"
    HASH = "hash"
    GIN = "gin"
    GIST = "gist"
    SPGIST = "spgist"
    BRIN = "brin"


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Declaration):
    """Resource limits of one run of a hook, which do not change an answer.

    They are not part of the release.
    """

    cpu: Cpu = Field("1", description="Cores: 2, 0.5 or 500m.")
    memory: Size = Field("2Gi", description="Memory of the whole run: 512Mi, 1Gi or 2G.")
    memory_ceiling: Size | None = Field(
        None,
        description="Maximum memory of the attempts that follow one which ran out of it; by default"
        " eight times `memory`.",
    )
    timeout: Duration = Field("1h", description="Longest time a run may take: 30s, 10m or 2h.")
    scratch: Size = Field("5Gi", description="Disk for temporary files and output.")

    @property
    def cpu_cores(self) -> float:
        """Cores."""
        return parse_cpu(self.cpu)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory."""
        return parse_size(self.memory)

    @property
    def memory_ceiling_bytes(self) -> int | None:
        """Maximum memory of any attempt, in bytes; None if not declared."""
        return None if self.memory_ceiling is None else parse_size(self.memory_ceiling)

    @property
    def timeout_seconds(self) -> float:
        """Seconds until the run is stopped."""
        return parse_duration(self.timeout)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of disk."""
        return parse_size(self.scratch)

    @model_validator(mode="after")
    def _ceiling_is_above(self) -> Self:
        ceiling = self.memory_ceiling_bytes
        if ceiling is not None and ceiling < self.memory_bytes:
            raise ValueError(
                f"memory_ceiling {self.memory_ceiling!r} is less than memory {self.memory!r}: give"
                " both the same value if memory must never be raised"
            )
        return self

    def with_memory(self, memory_bytes: int) -> "Limits":
        """Return the same limits with that much memory."""
        # whole KiB, since a size is written with a unit
        return self.model_copy(update={"memory": f"{-(-memory_bytes // 1024)}Ki"})


class ReleaseDefinition(_Declaration):
    """The program of a hook, and how it is run."""

    version: str = Field(min_length=1, description="The hook's version, in quotes: '1.10'.")
    command: tuple[str, ...] = Field(
        min_length=1, description="Program and arguments: [python, pockets.py]."
    )
    image: str | None = Field(
        None, description="Container image by digest: name@sha256:<64 hex digits>."
    )
    code: tuple[str, ...] = Field(
        (), description="Files to copy into the hook's working folder, relative to this file."
    )
    config: dict[str, JsonValue] = Field(
        default_factory=dict, description="The hook gets it as config.json."
    )
    limits: Limits = Field(
        default_factory=Limits, description="cpu, memory, memory_ceiling, timeout, scratch."
    )
    retries: int = Field(
        2, ge=0, le=20, description="How often an attempt without a verdict is repeated."
    )
    retry_within: Duration = Field(
        "5m",
        description="A run that ended with another status than 0 is tried again only if it took no"
        " longer than this: 30s, 5m or 2h.",
    )
    concurrency: int | None = Field(
        None, ge=1, description="Maximum number of concurrent runs of the hook."
    )

    @property
    def retry_within_seconds(self) -> float:
        """Seconds within which an attempt counts as failed quickly."""
        return parse_duration(self.retry_within)

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_text(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError(f"write the version in quotes: YAML reads {value} as a number")
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _command_is_list(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"write a list: [{', '.join(value.split())}]; no shell is involved")
        return value

    @field_validator("command")
    @classmethod
    def _command_is_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0] or any("\x00" in part for part in value):
            raise ValueError("the program's name is empty, or an argument has a NUL character")
        return value

    @field_validator("image")
    @classmethod
    def _image_by_digest(cls, value: str | None) -> str | None:
        if value is not None and not _IMAGE.fullmatch(value):
            raise ValueError(
                f"{value!r} can change under its name: write name@sha256:<64 hex digits>, "
                f"or a local image's id, sha256:<64 hex digits>"
            )
        return value

    @field_validator("code")
    @classmethod
    def _code_lies_flat(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        seen: dict[str, str] = {}
        for path in value:
            name = check_file_name(Path(path).name)
            if name in seen:
                raise ValueError(
                    f"{seen[name]!r} and {path!r} have the same name: all code files are put"
                    " into one folder"
                )
            seen[name] = path
        return value

    @field_validator("config")
    @classmethod
    def _config_is_json(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        document_bytes(value)
        return value

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        if self.image is None and not self.code:
            raise ValueError("image or code is needed: an image by digest, or a list of files")
        if self.image is not None and self.code:
            raise ValueError("image and code are both given: the image must contain the code")
        return self


class FeatureDefinition(_Declaration):
    """The features that a hook writes about a record that passes."""

    cardinality: Cardinality = Field(
        Cardinality.MANY, description="one: at most one row per record; many: any number."
    )
    columns: tuple[Column, ...] = Field(
        (), description="Declared columns; none for a hook that only passes or rejects."
    )

    @field_validator("columns")
    @classmethod
    def _columns_fit(cls, value: tuple[Column, ...]) -> tuple[Column, ...]:
        check_columns(value)
        return value


class IndexDefinition(_Declaration):
    """An index of the table, on columns or on one SQL expression."""

    columns: tuple[str, ...] = Field((), description="Columns, in order.")
    expression: str | None = Field(None, min_length=1, description="One SQL expression instead.")
    method: IndexMethod = Field(IndexMethod.BTREE, description="btree, hash, gin, gist, ...")
    unique: bool = Field(False, description="Whether two rows with equal keys are refused.")
    where: str | None = Field(None, min_length=1, description="SQL condition of a partial index.")
    name: str | None = Field(None, description="The index's name; by default a generated one.")

    @field_validator("name")
    @classmethod
    def _name_is_identifier(cls, value: str | None) -> str | None:
        if value is not None and not _INDEX_NAME.fullmatch(value):
            raise ValueError(f"{value!r}: 1 to 63 of a-z, 0-9 and '_', starting with a letter")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.columns) == (self.expression is not None):
            raise ValueError("give either columns or one expression")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"the columns of an index must be unique, found {list(self.columns)}")
        if self.unique and self.method is not IndexMethod.BTREE:
            raise ValueError(f"only btree indexes can be unique, not {self.method.value}")
        if len(self.columns) > MAX_INDEX_COLUMNS:
            raise ValueError(
                f"{len(self.columns)} columns are more than the {MAX_INDEX_COLUMNS} that an index"
                " in PostgreSQL can have"
            )
        if self.method in (IndexMethod.HASH, IndexMethod.SPGIST) and len(self.columns) > 1:
            raise ValueError(f"a {self.method.value} index has one column")
        return self


class UpcasterDefinition(_Declaration):
    """A Python function that converts rows of older releases to the current columns.

    It is called with one feature as a dict under the column names of its artifact (arrays and
    objects as lists and dicts, dates and times as text) and returns one under the declared names.
    """

    function: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:function"
    )
    releases: tuple[str, ...] = Field(
        min_length=1, description="Versions of the releases whose rows it converts."
    )
    version: str = Field(
        "1", min_length=1, description="Change it to build the table again with the function."
    )


class TableDefinition(_Declaration):
    """The table that users read."""

    materialize: Materialize = Field(
        Materialize.ALWAYS, description="always, or on_request: only when requested."
    )
    name: Name | None = Field(None, description="The table's name; by default the hook's.")
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="Which of the declared columns it has; by default all."
    )
    indexes: tuple[IndexDefinition, ...] = Field((), description="Indexes besides the primary key.")
    upcasters: tuple[UpcasterDefinition, ...] = Field(
        (), description="Functions for rows of older releases that no rule can convert."
    )


# Without null in the schema Dagster says what is wrong with a number, not that no schema fits it.
_Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)] | SkipJsonSchema[None]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | SkipJsonSchema[None]


class Threshold(_Declaration):
    """The values above which a check warns, and above which it fails; neither when empty."""

    warn: _Limit = Field(None, description="Above this the check warns: 0.01 is 1 %.")
    fail: _Limit = Field(None, description="Above this the check fails: 0.1 is 10 %.")

    @property
    def is_set(self) -> bool:
        """Whether it has a value."""
        return self.warn is not None or self.fail is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warn is not None and self.fail is not None and self.warn > self.fail:
            raise ValueError(
                f"warn {self.warn:g} is above fail {self.fail:g}: the check would fail before it"
                " warns; warn is the smaller of the two"
            )
        return self


class Rate(Threshold):
    """A threshold of a share of records: between 0 and 1."""

    warn: _Share = Field(None, description="Above this share the check warns: 0.01 is 1 %.")
    fail: _Share = Field(None, description="Above this share the check fails: 0.1 is 10 %.")


class CheckDefinition(_Declaration):
    """Thresholds of the check `outcomes`. Not part of the release."""

    error_rate: Rate = Field(
        Rate(warn=0),
        description="Share of a batch's records that errored; by default, any warns; {}: off.",
    )
    rejection_rate: Rate = Field(
        Rate(), description="Share of a batch's records that the hook rejected."
    )
    row_count_change: Threshold = Field(
        Threshold(),
        description="Change of the number of rows against the previous release, over the batches"
        " that both have computed: 0.2 is a fifth more or less.",
    )


class Freshness(_Declaration):
    """The maximum age of an asset's last materialization, of whichever batch."""

    fail_window: Duration = Field(description="Not fresh after this: 24h or 7d; a minute or more.")
    warn_window: Duration | None = Field(
        None, description="Dagster warns after this; less than `fail_window`."
    )

    @property
    def fail_seconds(self) -> float:
        """Seconds after which the asset is not fresh."""
        return parse_duration(self.fail_window)

    @property
    def warn_seconds(self) -> float | None:
        """Seconds after which Dagster warns; None if it does not."""
        return None if self.warn_window is None else parse_duration(self.warn_window)

    @model_validator(mode="after")
    def _check(self) -> Self:
        warn = self.warn_seconds
        if min(self.fail_seconds, warn or self.fail_seconds) < _SHORTEST_FRESHNESS_SECONDS:
            raise ValueError(
                "Dagster evaluates freshness every 30 seconds: a window is 1m or longer"
            )
        if warn is not None and warn >= self.fail_seconds:
            raise ValueError(
                f"warn_window {self.warn_window!r} is not less than fail_window"
                f" {self.fail_window!r}: it would never warn"
            )
        return self


class HookDefinition(_Declaration):
    """The complete declaration of one hook."""

    name: Name = Field(description="The hook's name: a-z, 0-9 and _, at most 40 characters.")
    dataset: Name = Field(description="The dataset over whose records it runs.")
    description: str | None = Field(None, description="What the hook computes for a record.")
    owners: tuple[str, ...] = Field((), description="E-mail addresses, or team:<name>.")
    inputs: tuple[Name, ...] = Field((), description="Other hooks whose features it gets.")
    unanswered_inputs: UnansweredInputs = Field(
        UnansweredInputs.SKIP,
        description="Records that an input rejected or errored on: skip: not asked about; give:"
        " given with that verdict.",
    )
    scope: Scope = Field(
        Scope.RECORD,
        description="record: an outcome depends on its record alone; batch: on the whole batch.",
    )
    release: ReleaseDefinition = Field(description="The program and how it is run.")
    feature: FeatureDefinition = Field(
        default_factory=FeatureDefinition, description="Cardinality and columns of its features."
    )
    table: TableDefinition = Field(
        default_factory=TableDefinition, description="The table of its features."
    )
    compute: Compute = Field(
        Compute.AUTOMATICALLY,
        description="automatically: for every batch; first_batch: for the dataset's first one, to"
        " be looked at before the others; on_request: only when asked for; elsewhere: another"
        " system runs the hook and publishes its output, and it is never started from here.",
    )
    checks: CheckDefinition = Field(
        default_factory=CheckDefinition, description="Thresholds of the check of its outcomes."
    )

    preview: bool = Field(
        True,
        description="Whether Dagster shows the first rows of a batch; they stay in its events.",
    )
    freshness: Freshness | SkipJsonSchema[None] = Field(
        None, description="fail_window, warn_window: how old the last materialization may be."
    )

    @field_validator("owners")
    @classmethod
    def _owners_are_reachable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not _OWNER.fullmatch(owner):
                raise ValueError(f"owner {owner!r}: write an e-mail address or team:<name>")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in self.inputs:
            raise ValueError(f"hook {self.name!r} has itself as an input")
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"an input occurs twice in {list(self.inputs)}")
        if self.unanswered_inputs is UnansweredInputs.GIVE and not self.inputs:
            raise ValueError("unanswered_inputs: the hook has no inputs; name them in `inputs`")
        self._check_table()
        for index in self.table.indexes:
            self._check_index(index)
        return self

    def _check_table(self) -> None:
        if not self.has_table:
            if self.table.name or self.table.columns or self.table.indexes:
                raise ValueError("table: a hook without feature.columns has no table")
            return
        chosen = self.table.columns or ()
        declared = [column.name for column in self.feature.columns]
        for name in chosen:
            if name not in declared:
                raise ValueError(
                    f"table.columns: {name!r} is not a declared column; those are "
                    f"{', '.join(declared)}"
                )
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"table.columns: a column occurs twice in {list(chosen)}")
        try:
            check_table_limits([column.kind for column in self.table_columns()])
        except InvalidInputError as error:
            where = "feature.columns" if self.table.columns is None else "table.columns"
            raise ValueError(f"{where}: {error}") from error
        names = [index.name for index in self.table.indexes if index.name]
        if len(set(names)) != len(names):
            raise ValueError(f"table.indexes: index names must be unique, found {names}")
        versions = [version for upcaster in self.table.upcasters for version in upcaster.releases]
        if len(set(versions)) != len(versions):
            raise ValueError(f"table.upcasters: a release occurs twice in {versions}")

    def _check_index(self, index: IndexDefinition) -> None:
        types = {column.name: column.type for column in self.table_columns()}
        known = sorted(types) + sorted(RESERVED_COLUMNS)
        for name in index.columns:
            if name not in known:
                raise ValueError(
                    f"table.indexes: {name!r} is not a column of the table; those are "
                    f"{', '.join(known)}"
                )
            is_json = types.get(name) in (ColumnType.ARRAY, ColumnType.OBJECT)
            if index.method is IndexMethod.GIN and not is_json:
                raise ValueError(
                    f"table.indexes: gin is for array and object columns, and {name!r} is neither; "
                    f"give an expression instead, such as to_tsvector('english', {name})"
                )

    @property
    def has_table(self) -> bool:
        """Whether there are columns for a table."""
        return bool(self.feature.columns)

    @property
    def table_name(self) -> str:
        """The name of the table people read."""
        return self.table.name or self.name

    def table_columns(self) -> tuple[Column, ...]:
        """The declared columns that the table has, in the table's order."""
        if self.table.columns is None:
            return self.feature.columns
        columns = {column.name: column for column in self.feature.columns}
        return tuple(columns[name] for name in self.table.columns)

    def code_files(self, folder: Path) -> dict[str, Path]:
        """Return the code files by their name in the working folder, sorted by it.

        Args:
            folder: The folder that `release.code` is relative to.

        Raises:
            InvalidInputError: One does not exist, or is not a file of the project.
        """
        files = {}
        for name in sorted(self.release.code, key=lambda path: Path(path).name):
            try:
                files[Path(name).name] = find_code_file(folder, name)
            except InvalidInputError as error:
                raise InvalidInputError(f"hook {self.name!r}: release.code: {error}") from None
        return files

    def hook_release(self, folder: Path) -> HookRelease:
        """Return the release of this definition, with the current code files in `folder`.

        Raises:
            InvalidInputError: A code file is missing or cannot be read.
        """
        document = ReleaseDocument(
            dataset=self.dataset,
            hook=self.name,
            version=self.release.version,
            image=self.release.image,
            command=self.release.command,
            code=tuple(_describe(name, path) for name, path in self.code_files(folder).items()),
            config=self.release.config,
        )
        return HookRelease.of(document)


def _describe(name: str, path: Path) -> RecordFile:
    try:
        with path.open("rb") as stream:
            digest, size = digest_stream(stream)
    except OSError as error:
        raise InvalidInputError(f"release.code: {path} cannot be read: {error}") from error
    return RecordFile(name=name, digest=str(digest), size=size)


Place = Callable[[HookDefinition, str], str]
"""Returns where a field of a hook is declared; empty if unknown."""


def _nowhere(hook: HookDefinition, field: str) -> str:
    return ""


def inputs_first(definitions: Iterable[HookDefinition]) -> Iterable[tuple[str, str]]:
    """Return datasets and names of hooks and of their inputs, each after its inputs."""
    graph = {
        (hook.dataset, hook.name): [(hook.dataset, name) for name in hook.inputs]
        for hook in definitions
    }
    # Definitions whose inputs make a cycle are refused when they are loaded.
    return graphlib.TopologicalSorter(graph).static_order()


@dataclass(frozen=True, slots=True)
class Clash:
    """Hooks that exclude each other, and the reason."""

    hooks: tuple[HookDefinition, ...]
    reason: str


def find_clashes(
    definitions: Sequence[HookDefinition],
    place: Place = _nowhere,
    unusable: Collection[tuple[str, str]] = (),
) -> Iterator[Clash]:
    """Yield hooks that exclude each other, with the reason.

    Two hooks of a dataset have one name, two hooks have one table (all tables are in one PostgreSQL
    schema), an input is not a hook of the same dataset, or inputs form a cycle.

    Args:
        definitions: All usable hooks of a code location.
        place: Returns where they are declared, for the reason.
        unusable: Dataset and name of hooks whose definitions cannot be used. A hook may name one as
            its input.
    """

    def clash(reason: str, *fields: tuple[HookDefinition, str]) -> Clash:
        places = [where for hook, field in fields if (where := place(hook, field))]
        reason = f"{reason} ({', '.join(places)})" if places else reason
        return Clash(tuple(hook for hook, _ in fields), reason)

    hooks: dict[tuple[str, str], HookDefinition] = {}
    tables: dict[str, HookDefinition] = {}
    for hook in definitions:
        if (same := hooks.setdefault((hook.dataset, hook.name), hook)) is not hook:
            reason = f"dataset {hook.dataset!r} has two hooks named {hook.name!r}"
            yield clash(reason, (same, "name"), (hook, "name"))
        if hook.has_table and (other := tables.setdefault(hook.table_name, hook)) is not hook:
            reason = (
                f"hooks {other.dataset}/{other.name} and {hook.dataset}/{hook.name} both have "
                f"table {hook.table_name!r}: give one another table.name"
            )
            yield clash(reason, (other, "table"), (hook, "table"))
    graph: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key, hook in hooks.items():
        sources = [(hook.dataset, name) for name in hook.inputs]
        for dataset, name in sources:
            if (dataset, name) not in hooks and (dataset, name) not in unusable:
                reason = f"hook {hook.name!r}: input {name!r} is not a hook of dataset {dataset!r}"
                yield clash(reason, (hook, "inputs"))
        graph[key] = [source for source in sources if source in hooks]
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            # The sorter lists each hook before those that it is an input of, the first one twice.
            around = [hooks[key] for key in reversed(error.args[1])][:-1]
            start = min(range(len(around)), key=lambda n: around[n].name)
            around = around[start:] + around[:start]
            names = " <- ".join(hook.name for hook in (*around, around[0]))
            yield clash(f"inputs form a cycle: {names}", *((hook, "inputs") for hook in around))
            for hook in around:
                graph[hook.dataset, hook.name] = []
        else:
            return
