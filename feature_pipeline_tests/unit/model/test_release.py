import json

import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument

FILE = RecordFile(name="h.py", digest=str(Digest.of(b"a")), size=1)
IMAGE = "x@sha256:" + "0" * 64


def release(**changes: object) -> HookRelease:
    document = {"dataset": "d", "hook": "h", "version": "1", "command": ("python", "h.py")}
    return HookRelease.of(ReleaseDocument.model_validate(document | changes))


def test_its_digest_names_its_bytes_and_it_comes_back():
    one = release(code=(FILE,), config={"x": [1.0, 1]})
    assert Digest.of(one.encode()) == one.digest
    assert HookRelease.decode(one.encode()) == one
    assert b'"x":[1.0,1]' in one.encode()


def test_known_bytes():
    """The form is stored: a change of it needs another spec_version."""
    assert release().encode() == (
        b'{"code":[],"command":["python","h.py"],"config":{},"dataset":"d","hook":"h",'
        b'"image":null,"spec_version":1,"version":"1"}'
    )


@pytest.mark.parametrize("data", [b"", b"[1]", b"\xff", b'{"hook":"h"}'])
def test_bytes_that_are_none(data):
    with pytest.raises(InvalidInputError, match="not a release document"):
        HookRelease.decode(data)


def test_a_newer_version_is_named_as_newer():
    document = json.loads(release().encode()) | {"spec_version": 7, "new": 1}
    with pytest.raises(InvalidInputError, match="release has spec_version 7"):
        HookRelease.decode(json.dumps(document).encode())


def test_what_decides_an_answer():
    identities = [
        release().action_identity(),
        release(version="2").action_identity(),
        release(code=(FILE,)).action_identity(),
        release(config={"x": 1}).action_identity(),
        release(image=IMAGE).action_identity(),
        release(image=IMAGE, code=(FILE,)).action_identity(),
        release(image=IMAGE, command=("other",)).action_identity(),
    ]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 7


def test_what_does_not():
    same = release(image=IMAGE, version="2", hook="other").action_identity()
    assert same == release(image=IMAGE).action_identity()
    one, other = FILE, RecordFile(name="z.py", digest=FILE.digest, size=1)
    assert (
        release(code=(one, other)).action_identity() == release(code=(other, one)).action_identity()
    )
