import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import (
    Cardinality,
    Compute,
    HookDefinition,
    Limits,
    Materialize,
    Scope,
    find_clashes,
)
from feature_pipeline.model.digest import Digest

IMAGE = "ghcr.io/lab/pockets@sha256:" + "0" * 64


def document(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "name": "pockets",
        "dataset": "structures",
        "release": {"version": "1.0", "command": ["python", "pockets.py"], "code": ["pockets.py"]},
        "feature": {
            "columns": [
                {"name": "score", "type": "number"},
                {"name": "chain", "type": "string"},
                {"name": "shape", "type": "object"},
            ]
        },
    }
    return base | changes


def define(**changes: object) -> HookDefinition:
    return HookDefinition.model_validate(document(**changes))


def release(**changes: object) -> dict[str, object]:
    return document()["release"] | changes  # type: ignore[operator]


def refusal(**changes: object) -> str:
    with pytest.raises(ValidationError) as caught:
        define(**changes)
    return str(caught.value)


def test_omitted_fields_have_defaults():
    hook = define()
    assert hook.scope is Scope.RECORD
    assert hook.compute is Compute.AUTOMATICALLY
    assert hook.table.materialize is Materialize.ALWAYS
    assert hook.feature.cardinality is Cardinality.MANY
    assert hook.table_name == "pockets"
    assert hook.table_columns() == hook.feature.columns
    assert hook.release.limits.timeout_seconds == 3600
    assert hook.preview
    assert hook.freshness is None


def test_freshness_in_units():
    hook = define(freshness={"fail_window": "1d", "warn_window": "90m"}, preview=False)
    assert hook.freshness is not None
    assert (hook.freshness.fail_seconds, hook.freshness.warn_seconds) == (86_400, 5400)
    assert define(freshness={"fail_window": "1m"}).freshness.warn_seconds is None
    assert not hook.preview


def test_limits_in_units():
    limits = Limits.model_validate(
        {"cpu": 0.5, "memory": "512Mi", "timeout": "10m", "scratch": "2G"}
    )
    assert limits.cpu_cores == 0.5
    assert limits.memory_bytes == 512 * 1024**2
    assert limits.timeout_seconds == 600
    assert limits.scratch_bytes == 2 * 1000**3
    assert limits.with_memory(1024**3).memory_bytes == 1024**3
    assert limits.with_memory(1024**3).timeout == "10m"
    assert limits.memory_ceiling_bytes is None
    assert Limits(memory="1Gi", memory_ceiling="1536Mi").memory_ceiling_bytes == 3 * 512 * 1024**2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Pockets"}, "starting with a letter"),
        ({"name": "_outcomes"}, "starting with a letter"),
        ({"dataset": "a-b"}, "1 to 40 of a-z"),
        ({"owners": ["anna"]}, "owner 'anna': write an e-mail address or team:<name>"),
        ({"inputs": ["pockets"]}, "hook 'pockets' has itself as an input"),
        ({"inputs": ["qc", "qc"]}, "twice"),
        ({"scope": "all"}, "Input should be 'record' or 'batch'"),
        ({"unknown": 1}, "Extra inputs are not permitted"),
        ({"freshness": {"warn_window": "1h"}}, "Field required"),
        ({"freshness": {"fail_window": "daily"}}, "write 30s, 10m or 2h"),
        ({"freshness": {"fail_window": "30s"}}, "a window is 1m or longer"),
        ({"freshness": {"fail_window": "1h", "warn_window": "1h"}}, "is not less than fail_window"),
        ({"release": release(version=1.1)}, "write the version in quotes"),
        ({"release": release(command="python pockets.py")}, "write a list: [python, pockets.py]"),
        ({"release": release(command=[])}, "at least 1 item"),
        ({"release": release(command=[""])}, "program's name is empty"),
        ({"release": release(image="lab/pockets:latest", code=[])}, "name@sha256:<64 hex digits>"),
        ({"release": release(image="sha256:" + "0" * 63, code=[])}, "can change under its name"),
        ({"release": release(image=IMAGE)}, "image and code are both given"),
        ({"release": release(code=[])}, "image or code is needed"),
        (
            {"release": release(code=["a/x.py", "b/x.py"])},
            "'a/x.py' and 'b/x.py' have the same name",
        ),
        ({"release": release(code=[".."])}, "one path component"),
        ({"release": release(config={"x": float("nan")})}, "not a JSON document"),
        ({"release": release(retries=-1)}, "greater than or equal to 0"),
        ({"release": release(limits={"memory": 512})}, "write 512Mi, 1Gi or 2G"),
        ({"release": release(limits={"memory": "512mb"})}, "write 512Mi, 1Gi or 2G"),
        ({"release": release(limits={"memory": "0Mi"})}, "write 512Mi, 1Gi or 2G"),
        (
            {"release": release(limits={"memory": "4Gi", "memory_ceiling": "2Gi"})},
            "is less than memory '4Gi'",
        ),
        ({"release": release(limits={"timeout": "1 hour"})}, "write 30s, 10m or 2h"),
        ({"release": release(limits={"timeout": 30})}, "write 30s, 10m or 2h"),
        ({"release": release(limits={"cpu": "0"})}, "write 2, 0.5 or 500m"),
        ({"release": release(limits={"cpu": True})}, "valid string"),
        ({"table": {"columns": ["scores"]}}, "'scores' is not a declared column; those are score"),
        ({"table": {"columns": ["score", "score"]}}, "twice"),
        ({"table": {"columns": []}}, "at least 1 item"),
        ({"table": {"name": "1st"}}, "starting with a letter"),
        ({"table": {"indexes": [{}]}}, "give either columns or one expression"),
        ({"table": {"indexes": [{"columns": ["x"]}]}}, "'x' is not a column of the table"),
        ({"table": {"indexes": [{"columns": ["score"], "expression": "1"}]}}, "give either"),
        (
            {"table": {"columns": ["score"], "indexes": [{"columns": ["chain"]}]}},
            "'chain' is not a column of the table",
        ),
        (
            {"table": {"indexes": [{"columns": ["score"], "method": "gin"}]}},
            "gin is for array and object columns",
        ),
        (
            {"table": {"indexes": [{"columns": ["score"], "method": "hash", "unique": True}]}},
            "only btree indexes can be unique",
        ),
        (
            {"table": {"indexes": [{"columns": ["score"], "name": n} for n in ("i", "i")]}},
            "index names must be unique, found ['i', 'i']",
        ),
        ({"feature": {}, "table": {"name": "t"}}, "a hook without feature.columns has no table"),
        (
            {"feature": {"columns": [{"name": n, "type": "number"} for n in ("a", "A")]}},
            "both use the name 'A'",
        ),
        ({"feature": {"columns": [{"name": "x", "type": "float"}]}}, "'string', 'number'"),
        ({"feature": {"columns": [{"name": "batch", "type": "string"}]}}, "of that name already"),
    ],
)
def test_the_error_of_a_wrong_definition_names_the_remedy(changes, words):
    assert words in refusal(**changes)


def test_refusals_name_the_field():
    assert "release.limits.memory" in refusal(release=release(limits={"memory": "lots"}))
    assert "table.indexes.0.method" in refusal(table={"indexes": [{"method": "tree"}]})


@pytest.mark.parametrize("image", [IMAGE, "sha256:" + "a" * 64])
def test_images_by_digest_or_id(image):
    hook = define(release=release(image=image, code=[]))
    assert hook.hook_release(Path("/nowhere")).document.image == image


def test_indexes_on_columns_that_every_table_has_and_on_json():
    hook = define(
        table={
            "name": "pocket_scores",
            "columns": ["shape", "score"],
            "indexes": [
                {"columns": ["record_id", "score"], "unique": True, "where": "score > 0"},
                {"columns": ["shape"], "method": "gin"},
                {"expression": "lower(batch)"},
            ],
        }
    )
    assert hook.table_name == "pocket_scores"
    assert [column.name for column in hook.table_columns()] == ["shape", "score"]


def test_a_hook_without_columns_has_no_table():
    assert define(feature={}).has_table is False
    assert define().has_table is True


class TestRelease:
    def test_it_names_code_by_bytes_whatever_its_order_and_folder(self, tmp_path):
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "contract.py").write_text("x = 1\n")
        (tmp_path / "pockets.py").write_text("import contract\n")
        one = define(release=release(code=["pockets.py", "lib/contract.py"]))
        other = define(release=release(code=["lib/contract.py", "pockets.py"]))
        made = one.hook_release(tmp_path)
        assert made == other.hook_release(tmp_path)
        assert list(one.code_files(tmp_path)) == ["contract.py", "pockets.py"]
        assert [file.blob for file in made.document.code] == [
            Digest.of(b"x = 1\n"),
            Digest.of(b"import contract\n"),
        ]

    def test_limits_columns_and_table_are_not_part_of_it(self, tmp_path):
        (tmp_path / "pockets.py").write_text("")
        same = define(
            release=release(
                limits={"memory": "4Gi", "memory_ceiling": "8Gi"}, retries=5, concurrency=1
            ),
            feature={"columns": []},
            description="other words",
        )
        assert same.hook_release(tmp_path) == define().hook_release(tmp_path)

    @pytest.mark.parametrize(
        "changes",
        [{"version": "1.1"}, {"command": ["python", "pockets.py", "-v"]}, {"config": {"x": 1}}],
    )
    def test_version_command_and_config_are(self, tmp_path, changes):
        (tmp_path / "pockets.py").write_text("")
        other = define(release=release(**changes))
        assert other.hook_release(tmp_path).digest != define().hook_release(tmp_path).digest

    def test_missing_code_is_named(self, tmp_path):
        with pytest.raises(
            InvalidInputError, match=re.escape(f"{tmp_path / 'pockets.py'} does not exist")
        ):
            define().hook_release(tmp_path)
        (tmp_path / "pockets.py").mkdir()
        with pytest.raises(InvalidInputError, match="is a folder: list its files"):
            define().hook_release(tmp_path)


class TestTogether:
    def hooks(self, *names: str, **inputs: list[str]) -> list[HookDefinition]:
        return [define(name=name, inputs=inputs.get(name, [])) for name in names]

    def test_hooks_that_fit(self):
        diamond = self.hooks("a", "b", "c", "d", b=["a"], c=["a"], d=["b", "c"])
        assert list(find_clashes(diamond)) == []
        assert list(find_clashes([define(), define(dataset="other", feature={})])) == []

    @pytest.mark.parametrize(
        ("names", "inputs", "words"),
        [
            (("a", "a"), {}, "two hooks named 'a'"),
            (("a",), {"a": ["b"]}, "input 'b' is not a hook of dataset 'structures'"),
            (("a", "b", "c"), {"a": ["b"], "b": ["c"], "c": ["a"]}, "a <- b <- c <- a"),
        ],
    )
    def test_hooks_that_do_not(self, names, inputs, words):
        clash, *_ = find_clashes(self.hooks(*names, **inputs))
        assert words in clash.reason

    def test_the_reason_names_where_they_are_declared(self):
        hooks = self.hooks("a", "b", a=["b"], b=["a"])
        [clash] = find_clashes(hooks, lambda hook, field: f"{hook.name}.yaml {field}")
        assert "a <- b <- a (a.yaml inputs, b.yaml inputs" in clash.reason

    def test_two_hooks_with_one_table(self):
        [clash] = find_clashes([define(), define(dataset="other")])
        assert "structures/pockets and other/pockets both" in clash.reason

    def test_many_diamonds_take_no_time(self):
        names = [f"h{n}" for n in range(60)]
        inputs = {f"h{n}": [f"h{n - 1}", f"h{n - 2}"] for n in range(2, 60)}
        assert list(find_clashes(self.hooks(*names, **inputs))) == []
