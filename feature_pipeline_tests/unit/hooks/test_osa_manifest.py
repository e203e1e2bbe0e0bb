"""Manifests of the Open Science Archive's SDK. That in `fixtures/osa` is osa-py 0.9.0's own."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from feature_pipeline.cli.options.projects import hook
from feature_pipeline.definitions import build_defs, hooks_of
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.osa_manifest import definition_yaml, import_hooks
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definitions

MANIFEST = Path(__file__).parents[2] / "fixtures/osa/manifest.json"
IMAGE = f"registry.example.org/probe@sha256:{'c' * 64}"


def test_what_becomes_of_a_hook():
    chains, readable = import_hooks(MANIFEST.read_bytes(), dataset="structures", image=IMAGE)
    assert chains.definition.name == "chain_lengths"
    assert chains.definition.release.image == IMAGE
    assert chains.definition.release.command == ("osa-run-hook",)
    assert chains.definition.release.version == "1.0.0"
    limits = chains.definition.release.limits
    assert (limits.memory_bytes, limits.cpu_cores, limits.timeout_seconds) == (2**29, 0.5, 300)
    columns = {column.name: column for column in chains.definition.feature.columns}
    assert list(columns) == ["name", "length", "weight", "tags", "seen"]
    assert (columns["length"].type, columns["length"].unit) == ("integer", "aa")
    assert columns["length"].description == "Residues."
    assert columns["name"].required
    assert not columns["tags"].required
    assert not readable.definition.has_table
    assert readable.definition.release.limits.memory_bytes == 2**30
    assert readable.notes == ()


def test_optional_columns_are_pointed_at():
    """osa-py 0.9 says string of `float | None`."""
    [note] = import_hooks(MANIFEST.read_bytes(), dataset="d", image=IMAGE)[0].notes
    assert note.startswith("weight, seen: ")


def test_the_file_has_the_same_definition():
    for imported in import_hooks(MANIFEST.read_bytes(), dataset="structures", image=IMAGE):
        document = yaml.safe_load(definition_yaml(imported.definition))
        assert document["type"] == "feature_pipeline.FeatureHook"
        assert HookDefinition.model_validate(document["attributes"]) == imported.definition


def test_a_bound_release_is_taken():
    document = json.loads(MANIFEST.read_bytes())
    for entry in document["conventions"][0]["hooks"]:
        entry["release"] = {
            "image": "localhost:5000/a/probe:1.2",
            "digest": f"sha256:{'d' * 64}",
            "source_ref": "x",
        }  # fmt: skip
    hooks = import_hooks(json.dumps(document).encode(), dataset="d")
    assert hooks[0].definition.release.image == f"localhost:5000/a/probe@sha256:{'d' * 64}"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"{", "not a manifest of osa-py"),
        (b'{"manifest_version": 2, "conventions": []}', "only 1 is known"),
        (MANIFEST.read_bytes(), "names no image"),
    ],
)
def test_what_cannot_be_imported(manifest, message):
    with pytest.raises(InvalidInputError, match=message):
        import_hooks(manifest, dataset="d")


def test_a_name_that_is_none_here():
    manifest = MANIFEST.read_bytes().replace(b"chain_lengths", b"ChainLengths")
    with pytest.raises(InvalidInputError, match="hook 'ChainLengths' cannot be defined here"):
        import_hooks(manifest, dataset="d", image=IMAGE)


def test_the_command(tmp_path):
    arguments = ["import", str(MANIFEST), "--dataset", "structures", "--image", IMAGE]
    arguments += ["--folder", str(tmp_path)]
    result = CliRunner().invoke(hook, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "chain_lengths/defs.yaml").is_file()
    assert (tmp_path / "is_readable/defs.yaml").is_file()
    before = (tmp_path / "is_readable/defs.yaml").read_text()
    again = CliRunner().invoke(hook, arguments)
    assert again.exit_code != 0
    assert (tmp_path / "is_readable/defs.yaml").read_text() == before
    assert CliRunner().invoke(hook, [*arguments, "--overwrite"]).exit_code == 0


def test_texts_of_a_manifest_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Dagster would run `{{ ... }}` as a program, in the process that has the secrets."""
    ran = tmp_path / "ran"
    program = f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}"
    secret = "{{ env.FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY }}"
    texts = [
        "1e-5",
        "010",
        "yes",
        "12:30:45",
        "{% raw %}",
        "*a",
        "&a",
        "a: b # c",
        "\u2028",
        "two\nlines",
    ]
    document = json.loads(MANIFEST.read_bytes())
    hook_document = document["conventions"][0]["hooks"][0]
    hook_document["config"] = {"secret": secret, "texts": texts}
    hook_document["feature"]["columns"][0]["description"] = program
    hook_document["feature"]["columns"][1]["unit"] = "010"
    path, defs = tmp_path / "manifest.json", tmp_path / "hooks"
    path.write_text(json.dumps(document))
    arguments = ["import", str(path), "--dataset", "d", "--image", IMAGE, "--folder", str(defs)]
    assert CliRunner().invoke(hook, arguments).exit_code == 0
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(defs))
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "none")
    monkeypatch.setenv("FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY", "hidden")
    loaded = build_defs()
    assert wrong_definitions(loaded) == {}
    chains = next(
        each.definition
        for each in hooks_of(loaded)
        if each.definition.name == hook_document["name"]
    )
    assert not ran.exists()
    assert chains.feature.columns[0].description == program
    assert chains.feature.columns[1].unit == "010"
    assert chains.release.config == {"secret": secret, "texts": texts}
