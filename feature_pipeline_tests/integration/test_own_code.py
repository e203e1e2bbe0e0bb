"""A hook declared in Python and assets downstream of it, in a module as a user writes one."""

import importlib.util
import textwrap
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import dagster as dg
import pandas as pd
import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.definitions import build_defs, hooks_of
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline_tests.fixtures.dagster import COUNT_HOOK, DATASET, Pipeline

MODULE = '''
import dagster as dg
import pandas as pd

from feature_pipeline import FeatureHook

counts = FeatureHook(
    name="counts",
    dataset="letters",
    release={"version": "1", "command": ["python", "counts.py"], "code": ["counts.py"]},
    feature={
        "columns": [
            {"name": "letter", "type": "string", "renamed_from": "character"},
            {"name": "count", "type": "integer"},
        ]
    },
    freshness={"fail_window": "2d", "warn_window": "12h"},
)
hooks = counts.definitions()

batches = dg.DynamicPartitionsDefinition(name="letters")
COUNTS = dg.AssetIn(["letters", "features", "counts"])


@dg.asset(partitions_def=batches, ins={"counts": COUNTS})
def commonest(counts: pd.DataFrame) -> pd.DataFrame:
    """A frame of one batch, kept by Dagster's own IO manager."""
    return counts.sort_values("count", ascending=False).head(1)


@dg.asset(partitions_def=batches)
def commonest_letter(commonest: pd.DataFrame) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"letter": commonest["letter"].iloc[0]})


@dg.asset(ins={"counts": COUNTS})
def total(counts: pd.DataFrame) -> dg.MaterializeResult:
    """All batches in one frame."""
    by_batch = counts.groupby("batch")["count"].sum()
    return dg.MaterializeResult(metadata={"total": dg.MetadataValue.json(by_batch.to_dict())})


assets = dg.Definitions(assets=[commonest, commonest_letter, total])
'''


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("users_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(result: dg.ExecuteInProcessResult, name: str) -> object:
    assert result.success
    (event,) = result.get_asset_materialization_events()
    return event.step_materialization_data.materialization.metadata[name].value


@pytest.mark.s3
@pytest.mark.postgres
@pytest.mark.dagster
def test_a_hook_and_assets_of_a_plain_module(pipeline: Pipeline):
    folder = pipeline.folder / "project"
    folder.mkdir()
    (folder / "counts.py").write_text(textwrap.dedent(COUNT_HOOK))
    (folder / "definitions.py").write_text(MODULE)
    module = load(folder / "definitions.py")
    defs = build_defs(module.hooks, module.assets, resources=pipeline.resources)
    (hook,) = hooks_of(defs)
    assert hook.folder == folder, "code files are relative to the module that declares the hook"

    for key, text in {"b1": "aab", "b2": "zz"}.items():
        pipeline.submit(key, {f"r-{key}": text})
    pipeline.tick()
    counts = features_key(DATASET, "counts")
    for key in ("b1", "b2"):
        assert pipeline.run(counts, key, defs=defs, checks=False).success
    table = table_key(DATASET, "counts")
    loaded = pipeline.run(table, partitions=("b1", "b2"), defs=defs, checks=False)
    again = pipeline.run(table, "b1", defs=defs, checks=False)
    for result, batches in ((loaded, {"b1", "b2"}), (again, {"b1"})):
        events = result.get_asset_materialization_events()
        by_partition = {
            e.partition: e.step_materialization_data.materialization.metadata for e in events
        }
        assert by_partition.keys() == batches
        for batch, entries in by_partition.items():
            head = log.head(pipeline.store, DATASET, "counts", batch)
            uri = f"{pipeline.archive_uri}/{layout.blob(head.manifest)}"
            assert entries["manifest_uri"].value == uri
            assert entries["release"].value == f"1 ({head.release.short})"
            of_batch = entries["batch"].value
            outcomes = [of_batch[name] for name in ("records", "passed", "rejected", "errored")]
            assert outcomes == [1, 1, 0, 0]
            assert entries["unchanged"].value is (result is again)
    assert pipeline.rows("select sum(count) from features.counts") == [(5,)]

    assert pipeline.run(dg.AssetKey("commonest"), "b1", defs=defs).success
    letter = pipeline.run(dg.AssetKey("commonest_letter"), "b1", defs=defs)
    assert shown(letter, "letter") == "a"
    total = pipeline.run(dg.AssetKey("total"), defs=defs)
    assert shown(total, "total") == {"b1": 3, "b2": 2}

    specs = defs.resolve_asset_graph()
    references = specs.get(counts).metadata["dagster/code_references"].code_references
    assert [reference.file_path for reference in references] == [str(folder / "counts.py")]
    lineage = specs.get(table).metadata["dagster/column_lineage"]
    assert lineage.deps_by_column["letter"] == [dg.TableColumnDep(counts, "letter")]
    sources = specs.get(table).metadata["column_sources"].value
    former = "`letter`, `character` in older releases"
    assert f"| `letter` | `letters/features/counts` | {former} |" in sources
    policy = dg.FreshnessPolicy.time_window(
        fail_window=timedelta(days=2), warn_window=timedelta(hours=12)
    )
    for key in (counts, table):
        assert specs.get(key).freshness_policy_or_from_metadata == policy
    assert pipeline.instance.freshness_enabled, "no setting is needed"
    pipeline.add_hook("plain")
    plain = pipeline.defs.resolve_asset_graph().get(features_key(DATASET, "plain"))
    assert plain.freshness_policy_or_from_metadata is None


def test_the_example_plots_what_is_known():
    from feature_pipeline.defs.pocket_volumes.plot import plot_pockets

    pockets = pd.DataFrame({"volume": [120.5, 80.0, 310.0], "druggability": [0.4, None, 0.9]})
    result = plot_pockets(pockets.astype("float64[pyarrow]"))
    assert result.metadata["pockets"] == 3
    assert result.metadata["without_druggability"] == 1
    assert result.metadata["plot"].value.startswith("![pockets](data:image/png;base64,iVBOR")
