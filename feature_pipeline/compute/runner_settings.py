"""Select the runner that starts hooks, from settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.s3_sign import S3Signer
from feature_pipeline.compute.pod_transfer import S3Transfer
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.ended_attempts import EndedAttempts
from feature_pipeline.hooks.runner import HookRunner
from feature_pipeline.hooks.runners.bubblewrap import Confinement
from feature_pipeline.hooks.runners.container.runner import ContainerRunner
from feature_pipeline.hooks.runners.kubernetes.config import PodOverrides
from feature_pipeline.hooks.runners.kubernetes.job import JobSettings
from feature_pipeline.hooks.runners.kubernetes.runner import KubernetesRunner
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.hooks.work_folders import WorkFolders


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SubprocessSettings(_Settings):
    """Hooks run as subprocesses of Dagster's worker, as its user."""

    kind: Literal["subprocess"] = "subprocess"
    confined: bool = Field(
        False, description="Confine hooks with bubblewrap: no network, no files but their own."
    )
    readable: tuple[str, ...] = Field(
        (), description="Absolute paths that confined hooks can read beside the system's programs."
    )


class ContainerSettings(_Settings):
    """Hooks run in containers of Docker or Podman on this machine."""

    kind: Literal["container"]
    engine_url: str | None = Field(
        None, description="unix:///run/podman/podman.sock; DOCKER_HOST or Docker's socket if unset."
    )
    code_image: str | None = Field(
        None, description="Image, by digest or local id, that hooks made of code files run in."
    )
    pids: int = Field(4096, gt=0, description="Most processes and threads of a hook at a time.")


class KubernetesSettings(_Settings):
    """Hooks run as Jobs of the cluster that this process runs in, or of kubectl's context."""

    kind: Literal["kubernetes"]
    namespace: str = Field(description="Where the Jobs are made; deploy/kubernetes/hooks.yaml.")
    support_image: str = Field(description="Image of deploy/Dockerfile, by digest.")
    code_image: str | None = Field(
        None, description="Image, by digest, that hooks made of code files run in."
    )
    service_account: str = Field("feature-pipeline-hook", description="Of the hooks' pods.")
    schedule_seconds: float = Field(
        1800.0, gt=0, description="How long a pod may wait for a node and for its images."
    )
    k8s: dict[str, Any] = Field(
        default_factory=dict, description="Additions to the Job, in dagster-k8s's `k8s` form."
    )


RunnerSettings = Annotated[
    SubprocessSettings | ContainerSettings | KubernetesSettings, Field(discriminator="kind")
]


_PARSER: Final[TypeAdapter[SubprocessSettings | ContainerSettings | KubernetesSettings]] = (
    TypeAdapter(RunnerSettings)
)


def parse_settings(
    config: Mapping[str, Any],
) -> SubprocessSettings | ContainerSettings | KubernetesSettings:
    """Return the settings in `config`, of the kind that `kind` names.

    Raises:
        InvalidInputError: An unknown kind, or settings of another kind.
    """
    try:
        return _PARSER.validate_python(dict(config))
    except ValidationError as error:
        raise InvalidInputError(f"runner settings: {error}") from error


def open_runner(
    settings: SubprocessSettings | ContainerSettings | KubernetesSettings,
    store: BlobStore,
    signer: S3Signer | None = None,
    work: WorkFolders | None = None,
) -> HookRunner:
    """Return the runner; nothing is connected yet.

    Args:
        settings: Parsed from configuration.
        store: The archive, through which pods exchange input and output.
        signer: Signs the pods' addresses; only Kubernetes needs one.
        work: Folder for ended attempts on this machine; if None, they are not stored.

    Raises:
        InvalidInputError: The `k8s` additions are wrong, there are no credentials that can sign, or
            bubblewrap cannot confine hooks here.
    """
    attempts = None if work is None else EndedAttempts(work.attempts)
    match settings:
        case SubprocessSettings():
            confinement = Confinement.find(settings.readable) if settings.confined else None
            return SubprocessRunner(work, confinement=confinement)
        case ContainerSettings():
            return ContainerRunner(
                settings.engine_url,
                code_image=settings.code_image,
                attempts=attempts,
                archive=store.identity,
                pids=settings.pids,
            )
        case KubernetesSettings():
            if signer is None:
                raise InvalidInputError(
                    "the kubernetes runner needs credentials that sign URLs of S3: the archive's,"
                    " or FEATURE_PIPELINE_SIGNER_ACCESS_KEY_ID and its secret key"
                )
            job = JobSettings(
                namespace=settings.namespace,
                support_image=settings.support_image,
                code_image=settings.code_image,
                service_account=settings.service_account,
                schedule_seconds=settings.schedule_seconds,
                overrides=PodOverrides.parse(settings.k8s),
            )
            return KubernetesRunner(S3Transfer(store, signer), job)
