"""Timestamps of answers are parsed as botocore parses them."""

import pytest
from botocore.utils import parse_timestamp

from feature_pipeline.archive.store.s3_client import make_client, parse_instant


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-30T16:20:00.123Z",
        "2026-11-30T16:20:00Z",
        "2026-11-30T16:20:00",
        "2026-11-30",
        "20261130T162000Z",
        "20261130",
        "Mon, 30 Nov 2026 16:20:00 GMT",
        "Mon, 30 Nov 2026 16:20:00 +0100",
        "30 Nov 2026 16:20:00 -0000",
        "1700000000",
        1700000000,
        1.5,
    ],
)
def test_an_instant_is_the_one_that_botocore_parses(value):
    parsed, expected = parse_instant(value), parse_timestamp(value)
    assert (parsed, parsed.utcoffset()) == (expected, expected.utcoffset())


@pytest.mark.parametrize("value", ["", "yesterday", None])
def test_what_botocore_refuses_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        parse_timestamp(value)
    with pytest.raises((TypeError, ValueError)):
        parse_instant(value)


def test_clients_parse_with_it():
    client = make_client(
        endpoint_url="http://127.0.0.1:1",
        region="us-east-1",
        access_key_id="a",
        secret_access_key="b",
    )
    factory = client._endpoint._response_parser_factory
    assert factory.create_parser("rest-xml")._timestamp_parser is parse_instant
