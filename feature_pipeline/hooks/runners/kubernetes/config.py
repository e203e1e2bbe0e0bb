"""The cluster's own additions to Jobs, in the form of dagster-k8s.

The `k8s` config of dagster-k8s: `container_config`, `pod_template_spec_metadata`,
`pod_spec_config`, `job_metadata`, `job_spec_config`, with field names in camel case or snake case.
Fields on which a hook's isolation or a Job's identity depends cannot be set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from feature_pipeline.errors import InvalidInputError

_MODELS: Final = {
    "container_config": "V1Container",
    "pod_template_spec_metadata": "V1ObjectMeta",
    "pod_spec_config": "V1PodSpec",
    "job_metadata": "V1ObjectMeta",
    "job_spec_config": "V1JobSpec",
}
_FIXED: Final = {
    "container_config": {
        "name", "image", "command", "args", "securityContext", "workingDir", "envFrom",
        "terminationMessagePolicy", "lifecycle", "livenessProbe", "ports", "stdin", "tty",
    },
    "pod_template_spec_metadata": {"name", "generateName", "namespace"},
    "pod_spec_config": {
        "containers", "initContainers", "ephemeralContainers", "restartPolicy", "securityContext",
        "automountServiceAccountToken", "hostNetwork", "hostPID", "hostIPC", "hostUsers",
        "shareProcessNamespace",
    },
    "job_metadata": {"name", "generateName", "namespace"},
    "job_spec_config": {
        "template", "completions", "parallelism", "completionMode", "backoffLimit",
        "podFailurePolicy", "podReplacementPolicy", "selector", "manualSelector",
        # the Job's deadline would delete the pod with its log: the pod has one
        "activeDeadlineSeconds",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PodOverrides:
    """Additions to a Job, in Kubernetes's own form; `parse` makes one from config."""

    container_config: Mapping[str, Any] = field(default_factory=dict)
    pod_template_spec_metadata: Mapping[str, Any] = field(default_factory=dict)
    pod_spec_config: Mapping[str, Any] = field(default_factory=dict)
    job_metadata: Mapping[str, Any] = field(default_factory=dict)
    job_spec_config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """Return the overrides of a `k8s` config.

        Raises:
            InvalidInputError: An unknown or fixed field, or a value of the wrong shape.
        """
        if unknown := set(config) - set(_MODELS):
            raise InvalidInputError(
                f"k8s: unknown {sorted(unknown)}; known are {', '.join(_MODELS)}"
            )
        parts: dict[str, Mapping[str, Any]] = {}
        for part in fields(cls):
            converted = _convert(
                config.get(part.name) or {}, _MODELS[part.name], f"k8s.{part.name}"
            )
            if fixed := _FIXED[part.name] & set(converted):
                raise InvalidInputError(
                    f"k8s.{part.name}: {', '.join(sorted(fixed))} cannot be set: the isolation"
                    f" of hooks or the identity of Jobs depends on it"
                )
            parts[part.name] = converted
        return cls(**parts)


def _convert(value: Any, kind: str, where: str) -> Any:
    """Return `value`, of the Kubernetes type `kind`, with field names as in the API (camelCase)."""
    if value is None:
        return None
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            raise InvalidInputError(f"{where}: a list is needed")
        return [_convert(item, match[1], f"{where}[{n}]") for n, item in enumerate(value)]
    from kubernetes.client import models

    model = getattr(models, kind, None)
    if model is None or not hasattr(model, "openapi_types"):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{where}: a mapping is needed")
    names = {
        **{v: k for k, v in model.attribute_map.items()},
        **{k: k for k in model.attribute_map},
    }
    converted: dict[str, Any] = {}
    for key, item in value.items():
        attribute = names.get(key)
        if attribute is None:
            raise InvalidInputError(f"{where}: {kind.removeprefix('V1')} has no field {key!r}")
        written = model.attribute_map[attribute]
        converted[written] = _convert(item, model.openapi_types[attribute], f"{where}.{written}")
    return converted


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: mappings merged, lists concatenated, other values replaced."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            result[key] = merged(present, value)
        elif isinstance(present, list) and isinstance(value, list):
            result[key] = [*present, *value]
        else:
            result[key] = value
    return result
