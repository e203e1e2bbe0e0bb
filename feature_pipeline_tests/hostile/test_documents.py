"""Documents of each kind with one thing wrong: the error names kind, place and thing."""

import pytest

from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.errors import CorruptDataError, InvalidInputError
from feature_pipeline_tests.hostile.doors import changed, doors

DEEP = "[" * 400 + "]" * 400
TOO_DEEP = "[" * 100_000
LONG = '"' + "y" * 50_000 + '"'
LONE = r'"\ud800"'

CASES = [
    # completions: what anyone who may publish leaves in the inbox
    ("completion", "base", '"0"', "base: Input should be a valid integer"),
    ("completion", "base", "true", "base: Input should be a valid integer"),
    ("completion", "base", "1.0", "base: Input should be a valid integer"),
    ("completion", "base", "-1", "base: Input should be greater than or equal to 0"),
    ("completion", "base", "1e3", "base: "),
    ("completion", "base", "9" * 5_000, "base: "),
    ("completion", "base", "18446744073709551616", "base: an integer beyond 64 bits"),
    ("completion", "release_seq", '"2"', "release_seq: Input should be a valid integer"),
    ("completion", "release_seq", "null", "release_seq: Input should be a valid integer"),
    ("completion", "release_seq", "NaN", "NaN is not a JSON number"),
    ("completion", "status", '"done"', "status: Input should be 'succeeded'"),
    ("completion", "status", '"SUCCEEDED"', "status: Input should be"),
    ("completion", "manifest", '"sha256:00"', "manifest: "),
    ("completion", "manifest", f'"SHA256:{"0" * 64}"', "manifest: "),
    ("completion", "manifest", f'"sha256:{"G" * 64}"', "manifest: "),
    ("completion", "manifest", f'"md5:{"0" * 32}"', "manifest: "),
    ("completion", "manifest", f'"{"0" * 64}"', "manifest: "),
    ("completion", "manifest", f'"sha256:{"0" * 64}\\n"', "manifest: "),
    ("completion", "published_at", '"2026-01-01T00:00:00"', "is not a time with a UTC offset"),
    ("completion", "published_at", '"yesterday"', "published_at: "),
    ("completion", "published_at", "1767225600", "is not a time with a UTC offset"),
    ("completion", "published_at", '"0001-01-01T00:00:00+14:00"', "not within the years 1 to 9999"),
    ("completion", "dagster_run_id", '"a\\u0000"', "dagster_run_id: NUL character"),
    ("completion", "dagster_run_id", f'"{"x" * 256}"', "at most 255 characters"),
    ("completion", "dagster_run_id", "[]", "dagster_run_id: Input should be a valid string"),
    ("completion", "id", '""', "id: String should have at least 1 character"),
    ("completion", "id", '"another"', "holds the entry run.another."),
    ("completion", "id", '"../run"', "holds the entry run.../run."),
    ("completion", "batch", LONE, "has a lone surrogate"),
    ("completion", "hook", "null", "hook: Input should be a valid string"),
    ("completion", "hook", None, "hook: Field required"),
    ("completion", "note", '"x"', "note: Extra inputs are not permitted"),
    ("completion", "spec_version", "3", "has spec_version 3; this version"),
    ("completion", "spec_version", '"2"', "has the spec_version '2', expected a positive"),
    ("completion", "spec_version", "2.0", "has the spec_version 2.0, expected a positive"),
    ("completion", "spec_version", "true", "has the spec_version True, expected a positive"),
    ("completion", "spec_version", "0", "has the spec_version 0, expected a positive"),
    ("completion", "spec_version", None, "has the spec_version None, expected a positive"),
    ("completion", "spec_version", "1", "has 'published_at' in spec_version 1"),
    ("completion", "published_at", None, "lacks 'published_at' in spec_version 2"),
    # submissions
    ("submission", "dataset", '"other"', "holds the entry batch.other.b1."),
    ("submission", "dataset", LONG, "holds the entry batch.yyy"),
    ("submission", "batch", '"b1\\u0000"', "batch: NUL character"),
    ("submission", "source", '"stolen"', "source: Input should be 'deposition'"),
    ("submission", "digest", "null", "digest: "),
    ("submission", "submitted_at", '"2026-13-01T00:00:00Z"', "submitted_at: "),
    ("submission", "submitted_at", '"9999-12-31T23:59:59-14:00"', "not within the years 1 to 9999"),
    ("submission", "records", "[]", "records: Extra inputs are not permitted"),
    # manifests: of anyone who may write blobs
    ("manifest", "columns", "{}", "columns: Input should be a valid tuple"),
    ("manifest", "columns.0.type", '"float"', "columns.0.type: Input should be 'string'"),
    ("manifest", "columns.0.format", '"date"', "format"),
    ("manifest", "columns.0.name", '"batch"', "every table has a column of that name"),
    ("manifest", "columns.0.name", '"xmin"', "PostgreSQL has a column of that name"),
    ("manifest", "columns.0.name", '"a\\"; drop table x; --"', "columns.0.name: "),
    ("manifest", "columns.0.name", '"a b"', "columns.0.name: "),
    ("manifest", "columns.0.default", '"x"', "default"),
    ("manifest", "columns.0.default", "1e400", "default"),
    ("manifest", "cardinality", '"some"', "cardinality: String should match pattern"),
    ("manifest", "content_digest", "null", "either the run failed or it has a content"),
    ("manifest", "rows_digest", '"sum:0"', "rows_digest: "),
    ("manifest", "failure", '{"kind": "x", "reason": "y"}', "either the run failed or it has"),
    ("manifest", "blobs", "{}", "blobs 'rows' and 'outcomes' are needed"),
    ("manifest", "blobs.rows.size", "-1", "blobs.rows.size: Input should be greater"),
    ("manifest", "blobs.rows.size", '"many"', "blobs.rows.size: "),
    ("manifest", "blobs.rows", "null", "blobs.rows: "),
    ("manifest", "counts", "null", "counts: "),
    ("manifest", "counts.rows", "1.5", "counts.rows: "),
    ("manifest", "release.seq", "0", "release.seq: Input should be greater than or equal to 1"),
    ("manifest", "run", "[]", "run: "),
    ("manifest", "run.attempts", "-1", "run.attempts: Input should be greater"),
    ("manifest", "run.started_at", '"2026"', "run.started_at: "),
    ("manifest", "starts", '[{"part": ""}]', "starts.0.records: Field required"),
    ("manifest", "without_output", '{"r1": {"kind": "lost", "reason": ""}}', "reason: String"),
    ("manifest", "notes", '"x"', "notes: Input should be a valid tuple"),
    ("manifest", "notes", f"[{LONE}]", "has a lone surrogate"),
    ("manifest", "notes", DEEP, "notes.0: Input should be a valid string"),
    ("manifest", "notes", TOO_DEEP, "nested too deep to be read"),
    ("manifest", "inputs", '{"qc": "x"}', "inputs.qc: "),
    ("manifest", "batch_digest", LONG, "batch_digest: "),
    ("manifest", "spec_version", "99", "has spec_version 99"),
    ("manifest", "starts", None, "lacks 'starts' in spec_version 2"),
    # log entries, which anyone with write access to the archive can make
    ("feature entry", "seq", "2", "its place is log/features/structures/pockets/b1/0000000002"),
    ("feature entry", "seq", "0", "seq: Input should be greater than or equal to 1"),
    ("feature entry", "seq", '"1"', "is not in canonical form"),
    ("feature entry", "seq", "10000000000", "its place is in no log"),
    ("feature entry", "batch", '"b2"', "its place is log/features/structures/pockets/b2/"),
    ("feature entry", "batch", '"../../x"', "its place is in no log"),
    ("feature entry", "batch", LONG, "its place is in no log"),
    ("feature entry", "hook", '"other"', "its place is log/features/structures/other/b1/"),
    ("feature entry", "previous", f'"sha256:{"0" * 64}"', "names an entry before it"),
    ("feature entry", "previous", None, "lacks 'previous' in spec_version 2"),
    ("feature entry", "verdict", '"best"', "verdict: Input should be 'current'"),
    ("feature entry", "manifest", "null", "manifest: "),
    ("feature entry", "base", "0.0", "is not in canonical form"),
    ("feature entry", "accepted_at", '"2026-01-01T01:00:00+01:00"', "is not in canonical form"),
    ("feature entry", "completion", LONE, "has a lone surrogate"),
    ("feature entry", "comment", '"x"', "comment: Extra inputs are not permitted"),
    ("batch entry", "records", "-1", "records: Input should be greater than or equal to 0"),
    ("batch entry", "records", "true", "is not in canonical form"),
    ("batch entry", "dataset", '"others"', "its place is log/batches/others/b1/0000000001"),
    ("batch entry", "source", '""', "source: Input should be"),
    ("batch entry", "submitted_at", "null", "submitted_at: "),
    ("batch entry", "digest", '"sha256:"', "digest: "),
    ("batch entry", "write_id", "7", "write_id: Input should be a valid string"),
    ("release entry", "release", "null", "release: "),
    ("release entry", "release.command", "[]", "release.command: Tuple should have at least 1"),
    ("release entry", "release.dataset", '"Structures"', "release.dataset: "),
    ("release entry", "release.code.0.name", '"../hook.py"', "one path component"),
    ("release entry", "release.code.0.name", LONG, "one path component"),
    ("release entry", "release.code.0.size", "-1", "release.code.0.size: "),
    ("release entry", "release.hook", '"other"', "its place is log/releases/structures/other/"),
    ("release entry", "registered_at", '"now"', "registered_at: "),
    ("tombstone", "record_ids", "[]", "record_ids: Tuple should have at least 1 item"),
    ("tombstone", "record_ids", '"r1"', "record_ids: Input should be a valid tuple"),
    ("tombstone", "record_ids", "[1]", "record_ids.0: Input should be a valid string"),
    ("tombstone", "action", '"erase"', "action: Input should be 'withdraw' or 'lift'"),
    ("tombstone", "dataset", '"others"', "its place is log/tombstones/others/0000000001"),
    ("tombstone", "reason", "null", "reason: Input should be a valid string"),
    ("loss", "losses", "[]", "losses: Tuple should have at least 1 item"),
    ("loss", "losses.0.log", '"log/batches/others/b1/"', "does not belong to dataset structures"),
    ("loss", "losses.0.log", '"../"', "losses"),
    ("loss", "losses.0.entries", "0", "0 entries, but the last one is sha256:"),
    ("loss", "losses.0.known_entries", "-1", "losses.0.known_entries: "),
    ("loss", "by", '""', "by: String should have at least 1 character"),
    # batches
    ("batch", "records", "null", "records: "),
    ("batch", "records.1.id", '"r1"', "record 'r1' occurs twice"),
    ("batch", "records.1.id", '"r1/x"', "the folder of one would be inside the other's"),
    ("batch", "records.0.id", '"a/../b"', "has a part '..'"),
    ("batch", "records.0.id", '"/etc/passwd"', "has an empty part"),
    ("batch", "records.0.id", '"a/"', "has an empty part"),
    ("batch", "records.0.id", '"a\\nb"', "has the control character"),
    ("batch", "records.0.id", '"a\\u0085b"', "has the control character"),
    ("batch", "records.0.id", LONE, "lone surrogate"),
    ("batch", "records.0.id", LONG, "is longer than 512 bytes"),
    ("batch", "records.0.id", "5", "records.0.id: Input should be a valid string"),
    ("batch", "records.0.metadata", "[]", "expected an object, found a list"),
    ("batch", "records.0.metadata", "null", "expected an object, found null"),
    ("batch", "records.0.metadata", r'{"x": "\ud800"}', "records.metadata.x has a lone surrogate"),
    ("batch", "records.0.metadata", '{"x": 1, "x": 1}', "a key is in one object twice"),
    ("batch", "records.0.files.0.name", '"a/b"', "one path component of at most 255 bytes"),
    ("batch", "records.0.files.0.name", '".."', "one path component of at most 255 bytes"),
    ("batch", "records.0.files.0.name", f'"{"é" * 128}"', "one path component of at most 255"),
    ("batch", "records.0.files.0.digest", '"sha1:00"', "records.0.files.0.digest: "),
    ("batch", "records.0.files.0.size", "-1", "records.0.files.0.size: "),
    ("batch", "records.0.files.0.path", '"/etc"', "Extra inputs are not permitted"),
    ("batch", "batch", '"B1"', "batch key 'B1'"),
    ("batch", "batch", LONG, "(50,000 characters)"),
    ("batch", "dataset", '"a-b"', "name 'a-b'"),
    ("batch", "spec_version", "2", "has spec_version 2"),
    ("batch", "spec_version", "9" * 5_000, "has spec_version"),
    ("batch", "records", f"[{DEEP}]", "records.0: "),
    ("batch", "records", f"[{', '.join(['1'] * 9_999)}]", "and 9,996 more"),
    # releases
    ("release", "command", '"run"', "command: Input should be a valid tuple"),
    ("release", "command", "[1]", "command.0: Input should be a valid string"),
    ("release", "version", '""', "version: String should have at least 1 character"),
    ("release", "version", "1.1", "version: Input should be a valid string"),
    ("release", "config", "[]", "expected an object, found a list"),
    ("release", "hook", '"a/b"', "name 'a/b'"),
    ("release", "spec_version", "7", "has spec_version 7"),
    # quarantined entries
    ("quarantined", "entry", LONE, "has a lone surrogate"),
    ("quarantined", "entry", "null", "entry: Input should be a valid string"),
    ("quarantined", "left_at", '"2026-01-01"', "left_at: "),
    ("quarantined", "reason", "[]", "reason: Input should be a valid string"),
    # what pods and workers leave of an attempt
    ("result", "exit_code", '"0"', "exit_code: Input should be a valid integer"),
    ("result", "exit_code", "true", "exit_code: Input should be a valid integer"),
    ("result", "exit_code", "4294967296", "exit_code: Input should be less than or equal to"),
    ("result", "is_late", "0", "is_late: Input should be a valid boolean"),
    ("result", "oom_kills", "-1", "oom_kills: Input should be greater than or equal to 0"),
    ("result", "peak_memory_bytes", "1e300", "peak_memory_bytes: "),
    ("result", "started_at", "1e300", "not a pod's result"),
    ("result", "started_at", "NaN", "not a pod's result"),
    ("result", "started_at", '"2026-01-01T00:00:00Z"', "started_at: Input should be a valid number"),
    ("result", "finished_at", "-1", "finished_at: "),
    ("result", "finished_at", "32503680000", "its times are later than"),
    ("result", "files", '{"../../x": ["sha256:0", 1]}', "is not an output file of a hook"),
    ("result", "files", '{"features.jsonl": ["sha256:0", 1]}', "not a pod's result"),
    ("result", "files", '{"features.jsonl": ["sha256:0", -1]}', "files.features.jsonl.1: "),
    ("result", "files", '{"features.jsonl": [1]}', "files.features.jsonl"),
    ("result", "files", '{"features.jsonl": 1, "features.jsonl": 2}', "a key is in one object twice"),
    ("result", "irregular", '["/etc/passwd"]', "is not an output file of a hook"),
    ("result", "too_large", '{"x": 1}', "is not an output file of a hook"),
    ("result", "log", LONG, "log: "),
    ("result", "node", LONE, "not a pod's result"),
    ("result", "spec_version", "2", "spec_version: Input should be less than or equal to 1"),
    ("result", "spec_version", "true", "spec_version: Input should be a valid integer"),
    ("result", "token", '"x"', "token: Extra inputs are not permitted"),
    ("end", "kind", '"tired"', "kind: Input should be"),
    ("end", "exit_code", '"5"', "exit_code: Input should be a valid integer"),
    ("end", "memory_limit_bytes", "true", "memory_limit_bytes: Input should be a valid integer"),
    ("end", "started_at", '"2026-01-01T00:00:00"', "started_at: Input should have timezone info"),
    ("end", "finished_at", "0", "finished_at: "),
    ("end", "log_tail", '"x"', "log_tail: Input should be a valid"),
    ("end", "spec_version", "2", "spec_version: Input should be less than or equal to 1"),
]  # fmt: skip


def test_those_that_are_changed_are_good():
    for door in doors().values():
        door.read(door.good)


@pytest.mark.parametrize(
    ("kind", "path", "text", "words"),
    CASES,
    ids=[f"{n}: {kind} {path} {str(text)[:20]!a}" for n, (kind, path, text, _) in enumerate(CASES)],
)
def test_one_value_is_wrong(kind, path, text, words):
    door = doors()[kind]
    with pytest.raises((InvalidInputError, CorruptDataError)) as raised:
        door.read(changed(door.good, path, text))
    assert words in str(raised.value)
    assert len(str(raised.value)) < 2_500


TEXTS = {
    "nothing": b"",
    "white space": b" \n",
    "null": b"null",
    "a list": b"[]",
    "text": b'"sha256:00"',
    "a number": b"9" * 5_000,
    "an object in a list": b"[{}]",
    "no members": b"{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a byte that is not UTF-8": b'{"a": "\xff"}',
    "a character cut off": b'{"a": "\xf0\x9f\x98"}',
    "cut off": b'{"spec_version": 1, "dat',
    "two objects": b"{} {}",
    "a comma too many": b'{"spec_version": 1,}',
    "NaN": b'{"spec_version": NaN}',
    "an infinity": b'{"spec_version": -Infinity}',
    "a key twice": b'{"spec_version": 1, "spec_version": 1}',
    "a control character": b'{"a": "\x01"}',
    "100,000 lists": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "Parquet": b"PAR1" + b"\x00" * 64 + b"PAR1",
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 20,
    "an S3 error": b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>',
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00N.",
    "YAML": b"spec_version: 1\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_that_is_no_document_is_refused_by_every_reader(text):
    for kind, door in doors().items():
        with pytest.raises((InvalidInputError, CorruptDataError)) as raised:
            door.read(text)
        assert not isinstance(raised.value, NewerVersionError), kind
        assert 10 < len(str(raised.value)) < 2_500, kind


def test_documents_of_another_kind_are_refused_by_every_reader():
    for kind, door in doors().items():
        for other, other_door in doors().items():
            if other != kind:
                with pytest.raises((InvalidInputError, CorruptDataError)):
                    door.read(other_door.good)
