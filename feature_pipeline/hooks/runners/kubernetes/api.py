"""The cluster calls that a hook run needs, with retries while the API server is busy.

Answers are plain JSON: additional fields of a newer cluster do no harm.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from feature_pipeline.errors import ConflictError, NotFoundError, StoreUnavailableError

_CALL_SECONDS: Final = 30
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_BACKOFF_SECONDS: Final = 10.0
_RESTART_SECONDS: Final = 120.0
"""How long after a server was unavailable its refusals are not trusted. A starting server answers
401 and 403 until it has read the roles, which looks like a refusal.
"""

Json = dict[str, Any]


class ClusterRefusedError(Exception):
    """The API server refused permanently; caught by the runner."""


def connect_here() -> Any:
    """Return a client of the cluster that this process runs in, or of kubectl's context."""
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
        connect: Makes a client; called again after a token has expired.
        patience_seconds: How long to wait for a server that does not answer.
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
        self._has_succeeded = False
        self._away_at = float("-inf")
        """When the server last gave no answer."""

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def create_job(self, manifest: Json) -> tuple[Json, list[str]]:
        """Create the Job; return it with the server's warnings.

        Raises:
            ConflictError: There is one of that name.
        """
        answer = self._answer("create_namespaced_job", self._namespace, manifest, api="BatchV1Api")
        return json.loads(answer.data), _warnings(answer)

    def job(self, name: str) -> Json | None:
        """Return the Job; None if there is none."""
        try:
            return self._json("read_namespaced_job", name, self._namespace, api="BatchV1Api")
        except NotFoundError:
            return None

    def delete_job(self, name: str) -> None:
        """Request the deletion of the Job, after its pods; no error if there is none."""
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
        """Return the Job's pods, including replaced ones as long as the cluster keeps them."""
        selector = f"batch.kubernetes.io/job-name={job}"
        answer = self._json("list_namespaced_pod", self._namespace, label_selector=selector)
        return list(answer["items"])

    def put_secret(self, manifest: Json, job: Json) -> None:
        """Create or replace the Secret; it is deleted with the Job."""
        metadata = job["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job"} | {
            k: metadata[k] for k in ("name", "uid")
        }
        owned = manifest | {"metadata": manifest["metadata"] | {"ownerReferences": [owner]}}
        try:
            self._json("create_namespaced_secret", self._namespace, owned)
        except ConflictError:
            name = manifest["metadata"]["name"]
            self._json("replace_namespaced_secret", name, self._namespace, owned)

    def last_warning(self, job: str) -> str:
        """Return the cluster's last warning event about the Job; empty if there is none."""
        answer = self._json(
            "list_namespaced_event",
            self._namespace,
            field_selector=f"involvedObject.name={job},type=Warning",
        )
        last = max(answer["items"], key=_event_time, default=None)
        return "" if last is None else f"{last.get('reason')}: {last.get('message')}"

    def log_tail(self, pod: str, container: str, lines: int) -> list[str]:
        """Return the last lines of a container; none if they are no longer available."""
        try:
            answer = self._answer(
                "read_namespaced_pod_log",
                pod,
                self._namespace,
                container=container,
                tail_lines=lines,
            )
        except (NotFoundError, StoreUnavailableError, ClusterRefusedError):
            return []
        return str(answer.data.decode("utf-8", "replace")).splitlines()

    def follow_log(self, pod: str, container: str) -> Any:
        """Open the container's output from its beginning as a streaming response.

        Not repeated on failure: the reader opens a broken stream again.
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
        answer: Json = json.loads(self._answer(method, *args, api=api, **options).data)
        return answer

    def _answer(self, method: str, *args: object, api: str = "CoreV1Api", **options: object) -> Any:
        """Return the response, retrying while the server is unavailable.

        Busy servers, lost connections, restarts and expired tokens are retried.

        Raises:
            NotFoundError, ConflictError: 404, 409.
            ClusterRefusedError: Any other refusal.
            StoreUnavailableError: No answer for `patience_seconds`.
        """
        import urllib3
        from kubernetes import client, config

        end, backoff, is_renewed = time.monotonic() + self._patience_seconds, 0.2, False
        request = f"{method.replace('_namespaced', '').replace('_', ' ')} in {self._namespace!r}"
        while True:
            try:
                call = getattr(getattr(client, api)(self._api_client()), method)
                answer = call(
                    *args, _preload_content=False, _request_timeout=_CALL_SECONDS, **options
                )
                _ = answer.data
            except client.ApiException as error:
                problem = f"{request}: {error.status} {_message(error)}"
                if error.status == 401 and not is_renewed:
                    # tokens in pods are rotated
                    is_renewed = True
                    self.close()
                    continue
                if error.status == 404:
                    raise NotFoundError(problem) from error
                if error.status == 409:
                    raise ConflictError(problem) from error
                if error.status in _PASSING:
                    self._away_at = time.monotonic()
                elif not self._may_be_starting(error.status) or time.monotonic() + backoff > end:
                    raise ClusterRefusedError(problem) from error
                cause: Exception = error
            except config.ConfigException as error:
                raise ClusterRefusedError(f"no cluster is configured here: {error}") from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem, cause = f"{request}: {error}", error
                self._away_at = time.monotonic()
            else:
                self._has_succeeded = True
                return answer
            if time.monotonic() + backoff > end:
                raise StoreUnavailableError(
                    f"the cluster's API does not answer: {problem}"
                ) from cause
            time.sleep(backoff)
            backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _may_be_starting(self, status: int) -> bool:
        """Return whether a refusal may come from a restarted server without roles yet."""
        was_away = time.monotonic() - self._away_at < _RESTART_SECONDS
        return status in {401, 403} and was_away and self._has_succeeded


def _warnings(answer: Any) -> list[str]:
    """Return the texts of an answer's `Warning` headers: `299 - "text"` each."""
    lines = answer.headers.getlist("Warning")
    return [text for line in lines for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', line)]


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _message(error: Any) -> str:
    try:
        body: Mapping[str, Any] = json.loads(error.body)
        return str(body["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
