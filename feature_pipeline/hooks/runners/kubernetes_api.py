"""The few calls on a cluster that a hook run needs, patient with an API server that is busy.

Answers are plain JSON: what a newer cluster says besides does no harm.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from feature_pipeline.errors import ConflictError, NotFoundError, StoreUnavailableError

_CALL_SECONDS: Final = 30
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_SECONDS: Final = 10.0

Json = dict[str, Any]


class ClusterRefusedError(Exception):
    """The API server said no, and will say so again; caught by the runner."""


def connect_here() -> Any:
    """A client of the cluster that this runs in, else of the current context of kubectl."""
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)
    # our own patience is counted in time, not tries
    configuration.retries = False
    return client.ApiClient(configuration)


class Cluster:
    """Jobs, pods and secrets of one namespace.

    Args:
        connect: Makes a client; again after a token has expired.
        patience_seconds: How long a server may refuse to answer before that is an error.
    """

    def __init__(
        self,
        namespace: str,
        connect: Callable[[], Any] = connect_here,
        patience_seconds: float = 300,
    ) -> None:
        self._namespace = namespace
        self._connect = connect
        self._patience_seconds = patience_seconds
        self._client: Any = None

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def create_job(self, manifest: Json) -> Json:
        """Raises ConflictError if there is one of that name."""
        return self._json("create_namespaced_job", self._namespace, manifest, api="BatchV1Api")

    def job(self, name: str) -> Json | None:
        """The Job; None if there is none."""
        try:
            return self._json("read_namespaced_job", name, self._namespace, api="BatchV1Api")
        except NotFoundError:
            return None

    def delete_job(self, name: str) -> None:
        """The Job is being deleted, and its pods before it; no error if there is none."""
        try:
            self._json(
                "delete_namespaced_job",
                name,
                self._namespace,
                api="BatchV1Api",
                # the default leaves the pods behind
                propagation_policy="Foreground",
            )
        except NotFoundError:
            return

    def pods(self, job: str) -> list[Json]:
        """The Job's pods, those that were replaced included as long as the cluster keeps them."""
        selector = f"batch.kubernetes.io/job-name={job}"
        answer = self._json("list_namespaced_pod", self._namespace, label_selector=selector)
        return list(answer["items"])

    def put_secret(self, manifest: Json) -> None:
        """The secret is there, with this content."""
        try:
            self._json("create_namespaced_secret", self._namespace, manifest)
        except ConflictError:
            name = manifest["metadata"]["name"]
            self._json("replace_namespaced_secret", name, self._namespace, manifest)

    def give_secret(self, name: str, job: Json) -> None:
        """The secret goes when the Job goes."""
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        patch = {"metadata": {"ownerReferences": [owner]}}
        self._json("patch_namespaced_secret", name, self._namespace, patch)

    def last_warning(self, job: str) -> str:
        """What the cluster last complained about regarding the Job; empty if about nothing."""
        answer = self._json(
            "list_namespaced_event",
            self._namespace,
            field_selector=f"involvedObject.name={job},type=Warning",
        )
        said = [f"{event.get('reason')}: {event.get('message')}" for event in answer["items"]]
        return said[-1] if said else ""

    def log_tail(self, pod: str, container: str, lines: int) -> list[str]:
        """The last lines of a container; none if they cannot be had any more."""
        try:
            data = self._answer(
                "read_namespaced_pod_log",
                pod,
                self._namespace,
                container=container,
                tail_lines=lines,
            )
        except (NotFoundError, StoreUnavailableError, ClusterRefusedError):
            return []
        return str(data.decode("utf-8", "replace")).splitlines()

    def follow_log(self, pod: str, container: str) -> Any:
        """The container's output from its beginning, as it comes: a response to be streamed.

        Not repeated when it fails: a stream that breaks is opened again by whoever reads it.
        """
        from kubernetes import client

        return client.CoreV1Api(self._api_client()).read_namespaced_pod_log(
            pod,
            self._namespace,
            container=container,
            follow=True,
            _preload_content=False,
            _request_timeout=(_CALL_SECONDS, None),
        )

    def _api_client(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _json(self, method: str, *args: object, api: str = "CoreV1Api", **options: object) -> Json:
        answer: Json = json.loads(self._answer(method, *args, api=api, **options))
        return answer

    def _answer(
        self, method: str, *args: object, api: str = "CoreV1Api", **options: object
    ) -> bytes:
        """The body of an answer; busy servers, lost connections and expired tokens are outlasted.

        Raises:
            NotFoundError, ConflictError: 404, 409.
            ClusterRefusedError: Any other refusal.
            StoreUnavailableError: No answer for `patience_seconds`.
        """
        import urllib3
        from kubernetes import client, config

        end, pause, is_renewed = time.monotonic() + self._patience_seconds, 0.2, False
        what = f"{method.replace('_namespaced', '').replace('_', ' ')} in {self._namespace!r}"
        while True:
            try:
                call = getattr(getattr(client, api)(self._api_client()), method)
                answer = call(
                    *args, _preload_content=False, _request_timeout=_CALL_SECONDS, **options
                )
                data: bytes = answer.data
            except client.ApiException as error:
                said = f"{what}: {error.status} {_message(error)}"
                if error.status == 401 and not is_renewed:
                    # tokens in pods are rotated
                    is_renewed = True
                    self.close()
                    continue
                if error.status == 404:
                    raise NotFoundError(said) from error
                if error.status == 409:
                    raise ConflictError(said) from error
                if error.status not in _PASSING:
                    raise ClusterRefusedError(said) from error
                cause: Exception = error
            except config.ConfigException as error:
                raise ClusterRefusedError(f"no cluster is configured here: {error}") from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                said, cause = f"{what}: {error}", error
            else:
                return data
            if time.monotonic() + pause > end:
                raise StoreUnavailableError(f"the cluster's API does not answer: {said}") from cause
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _message(error: Any) -> str:
    try:
        said: Mapping[str, Any] = json.loads(error.body)
        return str(said["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
