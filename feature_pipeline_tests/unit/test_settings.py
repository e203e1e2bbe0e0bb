"""Settings are checked when they are read, and come from one source."""

from pathlib import Path

import pytest

from feature_pipeline import settings
from feature_pipeline.archive.store.s3_client import client_of, make_client
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.local.environment import load_dotenv, write_dotenv
from feature_pipeline.settings import S3Settings, add_settings, check_prefix, proxy_for

HERE = {
    "FEATURE_PIPELINE_S3_BUCKET": "local",
    "FEATURE_PIPELINE_S3_PREFIX": "",
    "FEATURE_PIPELINE_S3_ENDPOINT_URL": "http://127.0.0.1:8333",
    "FEATURE_PIPELINE_S3_ACCESS_KEY_ID": "ours",
    "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY": "secret",
    "FEATURE_PIPELINE_DATABASE_URL": "postgresql://u:p@127.0.0.1/d",
    "DAGSTER_DATABASE_URL": "postgresql+psycopg2://u:p@127.0.0.1/g",
    "DAGSTER_HOME": "/project/dagster",
}


class TestTheArchivesAddress:
    @pytest.mark.parametrize(
        "prefix", ["", "a", "a/b", "/a/b/", "10.5281/zenodo.1", "a b", "é", "..a", "..."]
    )
    def test_prefixes(self, prefix):
        assert check_prefix(prefix) == prefix

    @pytest.mark.parametrize(
        ("prefix", "words"),
        [
            ("a//b", "has an empty part"),
            ("//a///b//", "has an empty part"),
            ("a/../b", "has '..'"),
            ("..", "has '..'"),
            ("./a", "has '.'"),
            ("a\n", "has a control character"),
            ("a\\b", "has a control character"),
        ],
    )
    def test_prefixes_that_stores_write_in_another_way(self, prefix, words):
        with pytest.raises(InvalidInputError, match=words) as caught:
            S3Settings("bucket", prefix)
        assert "FEATURE_PIPELINE_S3_PREFIX" in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"BUCKET": "s3://bucket"}, "S3_BUCKET is 's3://bucket': write the bucket's name"),
            ({"BUCKET": "a/b"}, "S3_BUCKET is 'a/b'"),
            ({"BUCKET": ""}, "S3_BUCKET is not set"),
            ({"ENDPOINT_URL": "127.0.0.1:9000"}, "S3_ENDPOINT_URL is '127.0.0.1:9000': write http"),
            ({"ENDPOINT_URL": "ftp://x"}, "write http://host:port"),
            ({"ENDPOINT_URL": "http://u:p@x"}, "write http://host:port"),
            ({"ENDPOINT_URL": "http://x:port"}, "write http://host:port"),
            ({"REGION": "eu west"}, "S3_REGION is 'eu west'"),
            ({"SECRET_ACCESS_KEY": ""}, "S3_ACCESS_KEY_ID is set and .*SECRET_ACCESS_KEY is not"),
            ({"ACCESS_KEY_ID": ""}, "S3_SECRET_ACCESS_KEY is set and .*ACCESS_KEY_ID is not"),
        ],
    )
    def test_what_cannot_be_right_names_its_variable(self, changes, words):
        changed = {f"FEATURE_PIPELINE_S3_{name}": value for name, value in changes.items()}
        with pytest.raises(InvalidInputError, match=words) as caught:
            S3Settings.from_environment(HERE | changed)
        assert "secret'" not in str(caught.value)

    def test_an_access_point_is_a_bucket(self):
        arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine"
        assert S3Settings(arn).bucket == arn

    def test_keys_are_not_shown(self):
        where = S3Settings.from_environment(HERE)
        assert (where.access_key_id, where.secret_access_key) == ("ours", "secret")
        assert "secret" not in repr(where)

    def test_a_given_environment_may_have_keys_by_awss_names(self):
        environment = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "x"}
        assert S3Settings.at("bucket", "", environment).access_key_id == "theirs"
        assert S3Settings.at("bucket", "", HERE | environment).access_key_id == "ours"

    @pytest.mark.parametrize("name", ["S3", "SIGNER"])
    def test_half_a_pair_of_keys_in_the_environment(self, monkeypatch, name):
        monkeypatch.setenv(f"FEATURE_PIPELINE_{name}_ACCESS_KEY_ID", "x")
        with pytest.raises(InvalidInputError, match=f"{name}_SECRET_ACCESS_KEY is not"):
            settings.s3_keys() if name == "S3" else settings.signer_keys()


class TestOneSource:
    def test_an_empty_environment_takes_all(self):
        environment: dict[str, str] = {}
        assert add_settings(environment, HERE)
        assert environment == HERE

    def test_a_shells_own_keys_are_left_alone(self):
        shell = {"AWS_ACCESS_KEY_ID": "x", "AWS_SESSION_TOKEN": "y", "AWS_PROFILE": "z"}
        environment = dict(shell)
        add_settings(environment, HERE)
        assert environment == HERE | shell

    def test_an_environment_that_names_the_bucket_has_the_keys_too(self):
        environment = {"FEATURE_PIPELINE_S3_BUCKET": "other", "AWS_PROFILE": "theirs"}
        add_settings(environment, HERE)
        assert {name for name in environment if "S3" in name} == {"FEATURE_PIPELINE_S3_BUCKET"}
        assert environment["AWS_PROFILE"] == "theirs"
        assert environment["FEATURE_PIPELINE_DATABASE_URL"]

    def test_half_of_the_address_is_refused(self):
        environment = {"FEATURE_PIPELINE_S3_PREFIX": "elsewhere"}
        with pytest.raises(InvalidInputError, match=r"S3_PREFIX is set .*and .*_BUCKET in \.env"):
            add_settings(environment, HERE)

    def test_the_same_half_is_not(self):
        environment = {"FEATURE_PIPELINE_S3_PREFIX": "", "FEATURE_PIPELINE_S3_ENDPOINT_URL": ""}
        environment["FEATURE_PIPELINE_S3_ENDPOINT_URL"] = HERE["FEATURE_PIPELINE_S3_ENDPOINT_URL"]
        add_settings(environment, HERE)
        assert environment == HERE

    def test_a_files_keys_by_awss_names_go_with_its_bucket(self):
        """As an earlier release wrote them, or a person."""
        file = {name: value for name, value in HERE.items() if "KEY" not in name}
        file |= {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret"}
        environment = {
            "AWS_ACCESS_KEY_ID": "theirs",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_SESSION_TOKEN": "y",
            "AWS_PROFILE": "z",
        }
        add_settings(environment, file)
        assert environment == file

    def test_dagsters_home_and_database_go_together(self):
        environment = {"DAGSTER_HOME": "/home/me/dagster"}
        assert add_settings(environment, HERE)
        assert environment["DAGSTER_HOME"] == "/project/dagster"
        other = {"DAGSTER_DATABASE_URL": "postgresql+psycopg2://h/d", "DAGSTER_HOME": "/srv"}
        environment = dict(other)
        assert not add_settings(environment, HERE)
        assert {name: environment[name] for name in other} == other

    def test_keys_that_an_earlier_release_wrote_are_not_kept(self, tmp_path: Path):
        path = tmp_path / ".env"
        path.write_text("AWS_ACCESS_KEY_ID='ours'\nAWS_SECRET_ACCESS_KEY='mine'\n")
        write_dotenv(path, HERE)
        assert load_dotenv(path) == HERE | {"AWS_SECRET_ACCESS_KEY": "mine"}


class TestProxies:
    @pytest.fixture(autouse=True)
    def _proxies(self, monkeypatch):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name.lower(), raising=False)
            monkeypatch.setenv(name, f"http://{name.lower()}:1")
        monkeypatch.setenv("NO_PROXY", "inside.example.org,.internal")

    @pytest.mark.parametrize(
        ("url", "proxy"),
        [
            ("http://127.0.0.1:8333", None),
            ("http://127.9.9.9:8333", None),
            ("http://[::1]:8333", None),
            ("https://localhost:8333", None),
            ("http://s3.localhost", None),
            ("http://inside.example.org", None),
            ("https://s3.internal", None),
            ("http://10.0.0.1:9000", "http://http_proxy:1"),
            ("https://s3.amazonaws.com", "http://https_proxy:1"),
        ],
    )
    def test_which_is_used(self, url, proxy):
        assert proxy_for(url) == proxy

    def test_all_proxy_has_no_effect(self, monkeypatch):
        monkeypatch.delenv("HTTPS_PROXY")
        assert proxy_for("https://s3.amazonaws.com") is None


class TestClients:
    def test_a_bundle_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        with pytest.raises(InvalidInputError, match=r"AWS_CA_BUNDLE is '/nowhere/ca\.pem', but"):
            make_client(endpoint_url="https://s3.example.org", **keys)
        make_client(endpoint_url="http://127.0.0.1:1", **keys).close()

    def test_a_profile_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(InvalidInputError, match="nobody"):
            make_client()
        client_of(S3Settings.from_environment(HERE)).close()

    def test_explicit_keys_exclude_those_of_the_environment(self, monkeypatch, tmp_path):
        config = tmp_path / "config"
        config.write_text("[default]\nregion = eu-x-1\nendpoint_url = http://elsewhere:1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere:1")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "theirs")
        client = client_of(S3Settings.from_environment(HERE))
        assert client.meta.endpoint_url == "http://127.0.0.1:8333"
        url = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
        assert "Credential=ours" in url
        assert "Security-Token" not in url
        assert "eu-x-1" not in url
        client.close()

    def test_without_keys_credentials_and_region_are_boto3s_and_nothing_else_is(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere:1")
        monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "theirs")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        client = make_client()
        assert client.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
        url = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
        assert "Credential=theirs" in url
        client.close()
