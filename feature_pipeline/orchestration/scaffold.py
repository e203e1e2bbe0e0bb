"""The hook that `dg scaffold defs feature_pipeline.FeatureHook <name>` writes."""

import os
import shutil
from pathlib import Path
from string import Template
from typing import Any, Final

import dagster as dg

from feature_pipeline import examples
from feature_pipeline.model.records import check_dataset

CONTRACT: Final = "contract.py"

DEFS_YAML = Template(
    """\
type: feature_pipeline.FeatureHook

attributes:
  name: $name                # also the table's name, unless table.name is set
  dataset: structures        # the dataset of its batches
  description: Features that this hook computes for a record.
  owners: ["team:science"]   # e-mail addresses, or team:<name>

  # inputs: [other_hook]     # it gets their features, for records that other_hook passed
  # unanswered_inputs: give  # also for other records, with other_hook's verdict

  release:
    version: "1"             # another version, command, code or config computes every record again
    command: [python, $name.py]
    code: [$name.py, $contract]
    # image: registry/name@sha256:<64 hex digits>   # instead of code, for container runners
    # config: {threshold: 0.5}                      # the hook gets it as config.json
    limits: {cpu: 1, memory: 1Gi, timeout: 10m}     # changing them computes nothing again
    # concurrency: 4                                # maximum number of concurrent runs

  feature:
    cardinality: one         # at most one row per record; many: any number
    columns:                 # type: string, number, integer, boolean, array, object
      - {name: file_count, type: integer, required: true, description: Number of files.}
      - {name: bytes, type: integer, required: true, unit: B, description: Size of all files.}
      # - {name: measured, type: string, format: date}    # formats: date, date-time, uuid

  table:
    materialize: always      # on_request: loaded on request only
    # indexes: [{columns: [bytes]}]

  compute: on_request        # first_batch: run for the first batch, to inspect its outcomes
                             # automatically: run for every batch, including existing ones

  # preview: false           # no first rows in Dagster's events, for confidential data
  # freshness: {fail_window: 7d, warn_window: 2d}   # maximum age of the last materialization

  # checks:                  # thresholds of the check `outcomes`; not part of the release
  #   error_rate: {warn: 0, fail: 0.1}          # share of a batch's records
  #   rejection_rate: {warn: 0.5}
  #   row_count_change: {warn: 0.1, fail: 0.5}  # against the previous release
"""
)

HOOK_PY = Template(
    '''\
"""A hook: one function from a record to its row or rows. Replace its body with science."""

from contract import Record, Reject, run


def $name(record: Record, config: dict) -> dict:
    """Return the number and total size of the record's files."""
    files = [path for path in record.folder.iterdir() if path.is_file()]
    if not files:
        raise Reject("no files")
    return {"file_count": len(files), "bytes": sum(path.stat().st_size for path in files)}


if __name__ == "__main__":
    run($name)
'''
)


class FeatureHookScaffolder(dg.Scaffolder[Any]):
    """Writes a commented `defs.yaml` and a hook program beside it."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write `defs.yaml` and `<name>.py` to the new folder; they load unchanged."""
        write_hook(request.target_path)


def write_hook(folder: Path) -> None:
    """Write a working hook named after the folder.

    In the package's own folder it shares `contract.py` with the examples; elsewhere it gets a copy,
    since a path into an installation differs between machines.

    Raises:
        InvalidInputError: The folder's name cannot name a hook.
    """
    name = check_dataset(folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    contract = Path(examples.__file__).parent / "hooks" / CONTRACT
    package = Path(examples.__file__).parents[1]
    if folder.resolve().is_relative_to(package):
        named = os.path.relpath(contract, folder)
    else:
        named = CONTRACT
        shutil.copyfile(contract, folder / CONTRACT)
    values = {"name": name, "contract": named}
    (folder / "defs.yaml").write_text(DEFS_YAML.substitute(values), encoding="utf-8")
    (folder / f"{name}.py").write_text(HOOK_PY.substitute(values), encoding="utf-8")
