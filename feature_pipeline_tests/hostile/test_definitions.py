"""Definitions, settings and addresses: each error is a sentence with the line or the variable."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.osa_manifest import import_hooks
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.records import check_batch_key, check_dataset, check_record_id
from feature_pipeline.model.text.yaml_text import InvalidYamlError
from feature_pipeline.orchestration.defs_folder import check_file
from feature_pipeline.settings import S3Settings
from feature_pipeline_tests.hostile.doors import changed

HEAD = "type: feature_pipeline.FeatureHook\nattributes:\n  name: pockets\n"
LAUGHS = "  a0: &a0 [x, x]\n" + "".join(
    f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)

TEXTS = [
    ("a billion laughs", HEAD + LAUGHS, "more than 100,000 values once aliases are expanded"),
    ("an alias of itself", HEAD + "  x: &x [*x]\n", "*x is inside the value that it names"),
    ("an alias of nothing", HEAD + "  x: *nothing\n", "*nothing is used before &nothing"),
    ("65 levels", HEAD + "  x: " + "[" * 65 + "]" * 65 + "\n", "nested deeper than 64"),
    ("100,000 levels", HEAD + "  x: " + "[" * 100_000 + "\n", "nested deeper than 64"),
    ("1 MB of text", HEAD + "  x: " + "y" * 1_000_000 + "\n", "at most 1,000,000"),
    ("a key twice", HEAD + "  name: again\n", "'name' occurs twice"),
    ("a number by YAML 1.2", HEAD + "  x: 1e-5\n", "write 1.0e-05 or '1e-5' in quotes"),
    ("an octal number", HEAD + "  x: 010\n", "is the number 8 by YAML 1.1"),
    ("a number in base 60", HEAD + "  x: 12:30:45\n", "by YAML 1.1"),
    ("Norway", HEAD + "  x: no\n", "is false by YAML 1.1"),
    ("switched on", HEAD + "  x: On\n", "is true by YAML 1.1"),
    ("a number with underscores", HEAD + "  x: 1_000\n", "is the number 1000 by YAML 1.1"),
    ("a list that is not closed", HEAD + "  x: [1, 2\n", "expected"),
    ("a text that is not closed", HEAD + '  x: "y\n', "quoted scalar"),
    ("a tab for indentation", HEAD + "\tx: 1\n", "tab character"),
    ("an unknown directive", "%WRONG\n---\n" + HEAD, ""),
    ("a control character", HEAD + "  x: a\x07b\n", "not allowed|control characters"),
    ("a NUL character", HEAD + "  x: a\x00b\n", "not allowed|control characters"),
    ("markers of a merge", HEAD + "<<<<<<< mine\n  x: 1\n=======\n", "could not find expected ':'|could not find"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_a_file_that_dagster_must_not_read(tmp_path, text, words):
    file = tmp_path / "defs.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((InvalidYamlError, yaml.YAMLError)) as raised:
        check_file(file)
    assert any(each in str(raised.value) for each in words.split("|"))
    if isinstance(raised.value, InvalidYamlError):
        assert raised.value.line >= 1


@pytest.mark.parametrize("data", [b"\xff\xfea\x00", b"name: \xe9\n"], ids=["UTF-16", "Latin-1"])
def test_a_file_that_is_not_utf8(tmp_path, data):
    file = tmp_path / "defs.yaml"
    file.write_bytes(data)
    with pytest.raises(UnicodeDecodeError):
        check_file(file)


def test_of_a_file_without_end_only_its_beginning_is_read(tmp_path):
    file = tmp_path / "defs.yaml"
    with file.open("wb") as made:
        made.write(b"#")
        made.truncate(1 << 40)
    with pytest.raises(InvalidYamlError, match="4,000,004 characters: at most 1,000,000"):
        check_file(file)


GOOD = b"""{
 "name": "pockets", "dataset": "structures",
 "release": {"version": "1", "command": ["python", "x.py"], "code": ["x.py"], "config": {},
             "limits": {"memory": "1Gi"}},
 "feature": {"columns": [{"name": "score", "type": "number"}]},
 "table": {"name": "pockets"}
}"""

DEFINITIONS = [
    ("name", '"pockets\\n"', "1 to 40 of a-z"),
    ("name", '"../pockets"', "1 to 40 of a-z"),
    ("name", '"pockets; drop schema features"', "1 to 40 of a-z"),
    ("name", '"пockets"', "1 to 40 of a-z"),
    ("name", f'"{"y" * 41}"', "1 to 40 of a-z"),
    ("name", "null", "valid string"),
    ("dataset", '"a.b"', "1 to 40 of a-z"),
    ("inputs", '["pockets"]', "has itself as an input"),
    ("inputs", '"qc"', "valid tuple"),
    ("release", "null", "release"),
    ("release.version", "1.10", "write the version in quotes"),
    ("release.version", '""', "at least 1 character"),
    ("release.command", '"python x.py"', "write a list"),
    ("release.command", "[]", "at least 1 item"),
    ("release.command", '["a\\u0000b"]', "NUL"),
    ("release.code", '[".."]', "one path component"),
    ("release.image", '"lab/x:latest"', "image"),
    ("release.config", "[]", "valid dictionary"),
    ("release.config", '{"a": "\\ud800"}', "not a JSON document"),
    ("release.retries", "-1", "greater than or equal to 0"),
    ("release.limits.memory", '"1e3"', "write 512Mi, 1Gi or 2G"),
    ("release.limits.memory", '"-1Gi"', "write 512Mi, 1Gi or 2G"),
    ("release.limits.memory", '"9999999999999999999Gi"', "memory"),
    ("release.limits.memory", f'"{"9" * 400}Gi"', "is not a size of 1 byte to 1024 Pi"),
    ("release.limits.timeout", f'"{"9" * 400}d"', "is not a duration of at most 36500d"),
    ("release.limits.cpu", f'"{"9" * 5_000}m"', "is not a number of at most 1,000,000 cores"),
    ("release.limits.timeout", '"forever"', "write 30s, 10m or 2h"),
    ("release.limits.timeout", "3600", "write 30s, 10m or 2h"),
    ("release.limits.cpu", '"NaN"', "write 2, 0.5 or 500m"),
    ("release.limits.scratch", '"0"', "write 512Mi, 1Gi or 2G"),
    ("feature.columns", "{}", "valid tuple"),
    ("feature.columns.0.name", '"score\\""', "feature.columns.0.name"),
    ("feature.columns.0.name", '"record_id"', "every table has a column of that name"),
    ("feature.columns.0.name", '"ctid"', "PostgreSQL has a column of that name"),
    ("feature.columns.0.name", f'"{"y" * 64}"', "at most 63 characters"),
    ("feature.columns.0.type", '"float"', "Input should be 'string'"),
    ("feature.columns.0.format", '"date"', "format"),
    ("feature.columns.0.default", '"x"', "default"),
    ("feature.columns.0.colour", '"red"', "Extra inputs are not permitted"),
    ("feature.cardinality", '"two"', "Input should be 'one' or 'many'"),
    ("table.name", '"Pockets"', "starting with a letter"),
    ("table.name", '"a\\u0000b"', "starting with a letter"),
    ("table.columns", '["gone"]', "is not a declared column"),
    ("table.indexes", '[["gone"]]', "gone"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "words"), DEFINITIONS, ids=[f"{p} {t[:30]!a}" for p, t, _ in DEFINITIONS]
)
def test_a_definition_with_one_wrong_field(path, text, words):
    import json

    HookDefinition.model_validate(json.loads(GOOD))
    with pytest.raises(ValidationError) as raised:
        HookDefinition.model_validate(json.loads(changed(GOOD, path, text)))
    assert words in str(raised.value)


DATES_AND_TAGS = [
    ("x: 2026-01-31", "release.config.x"),
    ("x: 2026-01-31T12:00:00Z", "release.config.x"),
    ("x: !!binary aGVsbG8=", "release.config.x"),
    ("x: !!set {a, b}", "release.config.x"),
    ("1: x", "release.config.1"),
    ("null: x", "release.config.None"),
    ("x: .nan", "not a JSON document"),
    ("x: .inf", "not a JSON document"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), DATES_AND_TAGS)
def test_config_that_json_has_not(text, words):
    config = yaml.safe_load(text)
    with pytest.raises(ValidationError) as raised:
        HookDefinition.model_validate(
            {
                "name": "pockets",
                "dataset": "structures",
                "release": {"version": "1", "command": ["x"], "code": ["x.py"], "config": config},
                "feature": {"columns": []},
            }
        )
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['id']", "!!python/name:os.system", "!ENV x", "!!merge x"],
)
def test_tags_construct_nothing(tag):
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(f"x: {tag}")


ADDRESSES = [
    ("S3_BUCKET", "", "FEATURE_PIPELINE_S3_BUCKET"),
    ("S3_BUCKET", "a/b", "FEATURE_PIPELINE_S3_BUCKET"),
    ("S3_BUCKET", "../x", "FEATURE_PIPELINE_S3_BUCKET"),
    ("S3_BUCKET", "a\nb", "FEATURE_PIPELINE_S3_BUCKET"),
    ("S3_BUCKET", "s3://bucket", "FEATURE_PIPELINE_S3_BUCKET"),
    ("S3_PREFIX", "a//b", "an empty part"),
    ("S3_PREFIX", "a/../b", "has '..'"),
    ("S3_PREFIX", "a/./b", "has '.'"),
    ("S3_PREFIX", "a\\b", "a control character"),
    ("S3_PREFIX", "a\nb", "a control character"),
    ("S3_PREFIX", "a\x7fb", "a control character"),
    ("S3_ENDPOINT_URL", "localhost:9000", "write http://host:port"),
    ("S3_ENDPOINT_URL", "ftp://host", "write http://host:port"),
    ("S3_ENDPOINT_URL", "file:///etc/passwd", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://host:99999", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://host:port", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://[::1", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://user:secret@host", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://host?x=1", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://ho st", "write http://host:port"),
    ("S3_ENDPOINT_URL", "http://host\n.evil", "write http://host:port"),
    ("S3_ACCESS_KEY_ID", "", "S3_SECRET_ACCESS_KEY"),
    ("S3_SECRET_ACCESS_KEY", "", "S3_ACCESS_KEY_ID"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), ADDRESSES)
def test_a_setting_that_cannot_be_right(name, value, words):
    right = {
        "FEATURE_PIPELINE_S3_BUCKET": "bucket",
        "FEATURE_PIPELINE_S3_ACCESS_KEY_ID": "key",
        "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY": "hidden",
    }
    S3Settings.from_environment(right)
    with pytest.raises(InvalidInputError) as raised:
        S3Settings.from_environment(right | {f"FEATURE_PIPELINE_{name}": value})
    assert words in str(raised.value)
    assert "hidden" not in str(raised.value)


MANIFEST = (Path(__file__).parents[1] / "fixtures/osa/manifest.json").read_bytes()
HOOKS = "conventions.0.hooks"

MANIFESTS = [
    ("manifest_version", "2", "only 1 is known"),
    ("manifest_version", '"x"', "manifest_version: Input should be a valid integer"),
    ("conventions", "{}", "conventions: Input should be"),
    (HOOKS, "null", f"{HOOKS}: Input should be"),
    (f"{HOOKS}.0.name", '"a b"', "cannot be defined here: name: "),
    (f"{HOOKS}.0.name", f'"{"y" * 50_000}"', "cannot be defined here: name: "),
    (f"{HOOKS}.0.name", r'"\ud800"', "lone surrogate"),
    (f"{HOOKS}.0.feature.columns.0.name", '"x; drop"', "cannot be defined here: feature.columns.0"),
    (f"{HOOKS}.0.feature.columns.0.json_type", '"blob"', "cannot be defined here: feature.columns.0"),
    (f"{HOOKS}.0.feature.cardinality", '"few"', "cannot be defined here: feature.cardinality"),
    (f"{HOOKS}.0.limits", '{"memory": "1 GB"}', "limits.memory '1 GB': expected 512m or 2g"),
    (f"{HOOKS}.0.limits", '{"timeout_seconds": -1}', "cannot be defined here: release.limits"),
    (f"{HOOKS}.0.config", '{"a": 1, "a": 2}', "key 'a' is in one object twice"),
    (f"{HOOKS}.0.config", '{"a": NaN}', "NaN is not a JSON number"),
    (f"{HOOKS}.0.config", '{"a": ' + "[" * 70 + "]" * 70 + "}", "nested deeper than 64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "words"), MANIFESTS, ids=[f"{p} {t[:30]!a}" for p, t, _ in MANIFESTS]
)
def test_a_manifest_of_another_project_with_one_wrong_value(path, text, words):
    image = f"registry.example.org/probe@sha256:{'c' * 64}"
    import_hooks(MANIFEST, dataset="structures", image=image)
    with pytest.raises(InvalidInputError) as raised:
        import_hooks(changed(MANIFEST, path, text), dataset="structures", image=image)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 2_500


NAMES = ["", " ", "a b", "a/b", "..", "a\n", "a\x00", "é", "A", "-a", "_a", "a" * 100_000, "\ud800",
         "a;b", "a'b", "${a}", "{{a}}", "<a>", "a\u200b", "ａ"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:9]))
@pytest.mark.parametrize("check", [check_batch_key, check_dataset])
def test_names_of_batches_and_datasets(check, name):
    with pytest.raises(InvalidInputError) as raised:
        check(name)
    str(raised.value).encode()
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "//", "..", "a/../b", "a\x7f", "a\x00", "\ud800", "y" * 10**6]
)
def test_ids_of_records(name):
    with pytest.raises(InvalidInputError) as raised:
        check_record_id(name)
    str(raised.value).encode()
    assert len(str(raised.value)) < 500
