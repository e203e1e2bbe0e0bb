"""A folder of definitions of which some cannot be used."""

from pathlib import Path

import dagster as dg
import pytest

from feature_pipeline.definitions import build_defs, hooks_of
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definitions

HOOK = """\
type: feature_pipeline.FeatureHook

attributes:
  name: {name}
  dataset: structures
  inputs: [{inputs}]
  release:
    version: "1"
    command: [python, hook.py]
    code: [hook.py]
  feature:
    cardinality: one
    columns:
      - {{name: size, type: integer}}
"""
BOMB = (
    "attributes:\n  release: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"  b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
    + "  name: size\n  dataset: structures\n"
)
ASSET = """\
import dagster as dg


@dg.asset
def summary(): ...
"""


class Project:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(folder))
        for name in ("size", "shape"):
            self.add(name)
        (folder / "plots").mkdir()
        (folder / "plots" / "summary.py").write_text(ASSET)

    def add(self, name: str, inputs: str = "", text: str = HOOK) -> Path:
        hook = self.folder / name
        hook.mkdir(exist_ok=True)
        (hook / "hook.py").write_text("raise SystemExit('not a module')")
        (hook / "defs.yaml").write_text(text.format(name=name, inputs=inputs))
        return hook / "defs.yaml"

    def edit(self, name: str, old: str, new: str) -> Path:
        path = self.folder / name / "defs.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "none")
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", "postgresql://reader@127.0.0.1/none")
    return Project(tmp_path / "hooks", monkeypatch)


def wrong_sentences(defs: dg.Definitions) -> list[str]:
    return list(wrong_definitions(defs).values())


def usable(defs: dg.Definitions) -> list[str]:
    return [hook.definition.name for hook in hooks_of(defs)]


def keys(defs: dg.Definitions) -> set[str]:
    return {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}


def test_a_folder_of_ones_own_needs_no_project_around_it(project: Project) -> None:
    defs = build_defs()
    assert usable(defs) == ["shape", "size"]
    assert wrong_sentences(defs) == []
    assert "summary" in keys(defs)


def test_texts_of_a_definition_are_not_evaluated(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the files of other components, Dagster evaluates what is in double braces."""
    monkeypatch.setenv("FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY", "secret")
    text = "{{ env.FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY }}"
    description = f"  description: '{text}'\n  dataset: structures"
    project.edit("size", "  dataset: structures", description)
    project.edit("size", "    code:", f"    config: {{key: '{text}'}}\n    code:")
    defs = build_defs()
    assert wrong_sentences(defs) == []
    (size,) = [each.definition for each in hooks_of(defs) if each.definition.name == "size"]
    assert size.description == text
    assert size.release.config == {"key": text}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("cardinality: one", "cardinality: oen", 12, "feature.cardinality: Input should be 'one'"),
        ("attributes:", "attributes: [", 5, "this is not YAML: did not find expected ','"),
        ("FeatureHook", "FeatureHok", 1, "has no attribute `FeatureHok`"),
        ("  dataset: structures\n", "", 3, "dataset: Field required"),
        ("code: [hook.py]", "code: [gone.py]", 10, "gone.py does not exist"),
        ("type: integer", "type: float", 14, "feature.columns.0.type: Input should be 'string'"),
        ("    code:", "    config: {e: 1e-5}\n    code:", 10, "1e-5 is text by YAML 1.1"),
        ("type: integer", "type: integer, required: no", 14, "write false or 'no' in quotes"),
        ("inputs: []", "inputs: []\n  inputs: []", 7, "'inputs' occurs twice"),
        ("attributes:\n", BOMB, 8, "values once aliases are expanded"),
        ("inputs: []", "inputs: [nothing]", 6, "input 'nothing' is not a hook of dataset"),
        ("inputs: []", "inputs: [size]", 0, "hook 'size' has itself as an input"),
    ],
)
def test_a_wrong_definition_costs_its_own_hook(
    project: Project, old: str, new: str, line: int, words: str
) -> None:
    path = project.edit("size", old, new)
    stands_for = "structures/features/size"
    if "dataset" in old:
        stands_for = "wrong_definitions/size/defs"
    defs = build_defs()
    assert usable(defs) == ["shape"]
    assert {"structures/features/shape", "structures/tables/shape", "summary"} <= keys(defs)
    assert list(wrong_definitions(defs)) == [stands_for]
    (sentence,) = wrong_sentences(defs)
    assert "\n" not in sentence
    assert words in sentence
    if line:
        assert f"{path}:{line}" in sentence
    assert str(path.parent) in sentence


@pytest.mark.parametrize("wrong", ["cardinality: oen", "cardinality: ["])
def test_the_assets_of_a_wrong_definition_stay_in_the_graph(project: Project, wrong: str) -> None:
    project.edit("size", "cardinality: one", wrong)
    project.add("sum", inputs="size")
    defs = build_defs()
    assert usable(defs) == ["shape", "sum"]
    graph = defs.resolve_asset_graph()
    table = graph.get(dg.AssetKey(["structures", "tables", "size"]))
    assert table.parent_keys == {dg.AssetKey(["structures", "features", "size"])}
    assert table.partitions_def == dg.DynamicPartitionsDefinition(name="structures")
    assert "This definition cannot be used" in (table.description or "")
    assert table.automation_condition is None
    assert (
        dg.AssetKey(["structures", "features", "size"])
        in graph.get(dg.AssetKey(["structures", "features", "sum"])).parent_keys
    )


def test_a_run_of_a_wrong_definition_fails_with_the_sentence(project: Project) -> None:
    project.edit("size", "cardinality: one", "cardinality: oen")
    defs = build_defs()
    key = dg.AssetKey(["structures", "features", "size"])
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("structures", ["b1"])
        result = dg.materialize(
            [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)],
            instance=instance,
            selection=[key],
            partition_key="b1",
            resources=dict(defs.resources or {}),
            raise_on_error=False,
        )
    (event,) = [each for each in result.all_events if each.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.description == wrong_sentences(defs)[0]
    assert failure.metadata["failure_kind"].value == "wrong_definition"


def test_a_file_without_a_hooks_name_is_an_asset_of_its_own(project: Project) -> None:
    (project.folder / "plots" / "summary.py").write_text("import nothing_of_this_name\n")
    defs = build_defs()
    assert usable(defs) == ["shape", "size"]
    assert "wrong_definitions/plots/summary" in keys(defs)
    (sentence,) = wrong_sentences(defs)
    assert sentence.startswith(f"{project.folder / 'plots' / 'summary.py'}:1: ModuleNotFoundError")


def test_a_wrong_copy_of_a_hook_costs_the_copy_alone(project: Project) -> None:
    project.add("size_copy", text=HOOK.replace("{name}", "size"))
    project.edit("size_copy", "cardinality: one", "cardinality: oen")
    defs = build_defs()
    assert usable(defs) == ["shape", "size"]
    assert "wrong_definitions/size_copy/defs" in keys(defs)


def test_of_two_hooks_with_one_name_neither_is_guessed_to_be_right(project: Project) -> None:
    project.add("size_copy", text=HOOK.replace("{name}", "size"))
    defs = build_defs()
    assert usable(defs) == ["shape"]
    assert all("has two hooks named 'size'" in each for each in wrong_sentences(defs))
    assert "structures/features/size" in keys(defs)


@pytest.mark.parametrize("variable", ["1"])
def test_validation_refuses_what_a_deployment_leaves_out(
    project: Project, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    path = project.edit("size", "cardinality: one", "cardinality: oen")
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", variable)
    with pytest.raises(InvalidInputError, match=r"defs\.yaml:12: feature\.cardinality") as caught:
        build_defs()
    assert str(caught.value).startswith(str(path))


def test_a_corrected_definition_is_loaded_again(project: Project) -> None:
    project.edit("size", "cardinality: one", "cardinality: oen")
    assert usable(build_defs()) == ["shape"]
    project.edit("size", "cardinality: oen", "cardinality: one")
    defs = build_defs()
    assert usable(defs) == ["shape", "size"]
    assert wrong_sentences(defs) == []


def test_a_folder_that_does_not_exist_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(project.folder / "gone"))
    with pytest.raises(InvalidInputError, match="there is no such folder"):
        build_defs()
