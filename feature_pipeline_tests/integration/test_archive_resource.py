"""The archive's resource over whatever makes clients of an S3 server."""

import pytest

from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline_tests.fixtures.stores import connect

pytestmark = pytest.mark.s3


def test_dagster_aws_may_make_the_clients(s3_address, s3_prefix):
    from dagster_aws.s3 import S3Resource

    s3 = S3Resource(
        endpoint_url=s3_address.endpoint_url,
        region_name=s3_address.region,
        aws_access_key_id=s3_address.access_key_id,
        aws_secret_access_key=s3_address.secret_access_key,
    )
    store = ArchiveResource(s3=s3, bucket=s3_address.bucket, prefix=s3_prefix).store()
    assert store.create("log/a", b"a")
    with connect(s3_address, s3_prefix) as other:
        assert other.get("log/a").data == b"a"
