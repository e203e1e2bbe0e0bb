"""Local servers end with the command that started them."""

import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from feature_pipeline.cli import servers


class Services:
    """Servers that only note whether they run."""

    s3 = SimpleNamespace(endpoint_url="http://127.0.0.1:1", bucket="b")
    database_url = "postgresql://127.0.0.1/x"
    free_bytes = servers.ENOUGH_BYTES
    is_running = False


@pytest.fixture
def services(monkeypatch):
    services = Services()

    @contextmanager
    def run(folder):
        services.is_running = True
        try:
            yield services
        finally:
            services.is_running = False

    monkeypatch.setattr(servers, "LocalServices", run)
    monkeypatch.setattr(servers, "environment", lambda *_: {})
    monkeypatch.setattr(servers, "write_dotenv", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return services


def run_until(number, services, tmp_path):
    """The block ends by this signal; returns whether anything after it was reached."""
    project = SimpleNamespace(
        dotenv=tmp_path / ".env",
        prepare_dagster_home=lambda *_: None,
        load_environment=lambda: None,
    )
    with servers.local_servers(project, tmp_path, SimpleNamespace(say=lambda _: None)):
        assert services.is_running
        signal.raise_signal(number)
        return True


@contextmanager
def handled(number, how):
    """The signal is handled in this way, as the shell that started a command leaves it."""
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_ends_the_command_ends_its_servers(services, tmp_path, number):
    with handled(number, signal.SIG_DFL):
        with pytest.raises(KeyboardInterrupt):
            run_until(number, services, tmp_path)
        assert not services.is_running
        assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(services, tmp_path):
    with handled(signal.SIGHUP, signal.SIG_IGN):
        assert run_until(signal.SIGHUP, services, tmp_path)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
