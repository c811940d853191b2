"""The RayJob for KubeRay: its pods by Kubernetes' own schemas, Ray's fields by the list of KubeRay's reference."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import ray
import yaml

from cluster import submission
from cluster.submission import STOP_WAIT_S, Job
from tests.cluster.launcher_config import GIBIBYTE

DELETED = object()
KUBERNETES = "1.34"
GPU = "nvidia.com/gpu"

# KubeRay's API reference for ray.io/v1 (docs/reference/api.md of its repository, releases 1.6 and later): the fields of
# every type that the file uses. `*` stands for keys of the user's own; `pod` for a PodTemplateSpec of Kubernetes.
FIELDS: dict[str, dict[str, Any]] = {
    "RayJob": {"apiVersion": str, "kind": str, "metadata": dict, "spec": "RayJobSpec"},
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "pod",
        "metadata": dict,
        "clusterSelector": dict,
        "submitterConfig": "SubmitterConfig",
        "managedBy": str,
        "deletionStrategy": dict,
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "entrypointResources": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": int,
        "preRunningDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
    },
    "SubmitterConfig": {"backoffLimit": int},
    "RayClusterSpec": {
        "upgradeStrategy": dict,
        "authOptions": "AuthOptions",
        "suspend": bool,
        "managedBy": str,
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": dict,
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": dict,
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str,
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"enableK8sTokenAuth": bool, "secretName": str, "mode": {"disabled", "token"}},
    "AutoscalerOptions": {
        "resources": dict,
        "image": str,
        "imagePullPolicy": str,
        "securityContext": dict,
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
        "env": list,
        "envFrom": list,
        "volumeMounts": list,
    },
    "HeadGroupSpec": {
        "template": "pod",
        "headService": dict,
        "enableIngress": bool,
        "rayStartParams": "strings",
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
    },
    "WorkerGroupSpec": {
        "suspend": bool,
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "idleTimeoutSeconds": int,
        "resources": "strings",
        "labels": "strings",
        "rayStartParams": "strings",
        "template": "pod",
        "scaleStrategy": dict,
        "numOfHosts": int,
    },
}


def shape_problems(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """Where a value is not of a kind of FIELDS; unknown fields, which the API server would drop in silence, too."""
    if kind == "pod":
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": value}
        try:
            kubernetes_validate.validate(template, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{where}.{'.'.join(map(str, list(error.path)[1:]))}: {error.message}"
    elif kind == "strings":
        if not (isinstance(value, dict) and all(isinstance(part, str) for part in value.values())):
            yield f"{where}: not all strings"
    elif isinstance(kind, list):
        for index, part in enumerate(value):
            yield from shape_problems(part, kind[0], f"{where}.{index}")
    elif isinstance(kind, set):
        if value not in kind:
            yield f"{where}: {value!r} is none of {sorted(kind)}"
    elif isinstance(kind, str):
        for name, part in value.items():
            if name in FIELDS[kind]:
                yield from shape_problems(part, FIELDS[kind][name], f"{where}.{name}")
            else:
                yield f"{where}: {kind} has no field {name}"
    elif type(value) is not kind:
        yield f"{where}: {value!r} is no {kind.__name__}"


def problems(job: dict[str, Any]) -> list[str]:
    """Every requirement that the parsed file does not meet; empty for a good one."""
    found = list(shape_problems(job, "RayJob"))
    return found or [*_job(job), *_cluster(job["spec"]["rayClusterSpec"]), *_secrets(job)]


def _job(job: dict[str, Any]) -> Iterator[str]:
    spec = job["spec"]
    if (job["apiVersion"], job["kind"]) != ("ray.io/v1", "RayJob"):
        yield "another kind"
    words = shlex.split(spec.get("entrypoint", ""))
    if words[:3] != ["python", "-m", "jobs.grid"] or "--resume" not in words:
        yield "it does not run a grid that goes on"
    places = words[3:4] + [words[words.index(name) + 1] for name in ("--manifest", "--out") if name in words]
    if len(places) != 3 or not all(place.startswith("s3://") for place in places):
        yield "data and results are not in the bucket"
    if spec.get("backoffLimit") != 0:
        yield "a job that ended is repeated"
    # Kubernetes' own default for a RayJob's submitter is 2.
    if spec.get("submitterConfig", {}).get("backoffLimit", 2) < 2:
        yield "a lost pod that only follows the job ends it"
    environment = (yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}).get("env_vars", {})
    if environment != {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}:
        yield "a job that is stopped has no time to save"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "the cluster outlives the job"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster.get("rayVersion") != ray.__version__:
        yield "another Ray than the lock's"
    if cluster.get("authOptions") != {"mode": "token", "secretName": "stgs-ray-token"}:
        yield "no token from a Secret"
    options = cluster.get("autoscalerOptions", {})
    if cluster.get("enableInTreeAutoscaling") is not True or options.get("version") != "v2":
        yield "no autoscaler of version 2"
    if options.get("idleTimeoutSeconds", 0) < 60 or options.get("securityContext") != CONTAINER_RIGHTS:
        yield "the autoscaler has no time-out, or too many rights"
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    if head["rayStartParams"].get("num-cpus") != "0" or head.get("serviceType") != "ClusterIP":
        yield "the head takes tasks, or is reached from outside"
    yield from _pod(head, gpus=0)
    yield from _ending(head["template"]["spec"])
    images = {part["template"]["spec"]["containers"][0].get("image") for part in (head, *groups)}
    if images != {"stgs-bmnas:0.1.0"}:
        yield "not one pinned image"
    for group in groups:
        if group.get("minReplicas") != 0 or group.get("replicas") != 0 or group.get("maxReplicas", 0) < 1:
            yield "workers run without work, or never"
        yield from _pod(group, gpus=1)
        yield from _leaving(group["template"]["spec"])


CONTAINER_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pod(group: dict[str, Any], gpus: int) -> Iterator[str]:
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    resources = container.get("resources", {})
    limits = resources.get("limits", {})
    if limits != resources.get("requests") or not {"cpu", "memory"} <= set(limits):
        yield "requests and limits differ: another pod could take the memory away"
    if limits.get(GPU, "0") != str(gpus) or (GPU in limits) != bool(gpus):
        yield "not the GPUs that it is for"
    rights = pod.get("securityContext", {})
    wanted = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    if rights != {**wanted, "seccompProfile": {"type": "RuntimeDefault"}}:
        yield "the pod runs as another user"
    if container.get("securityContext") != CONTAINER_RIGHTS:
        yield "the container may do too much"
    if pod.get("restartPolicy") != "Never" or pod.get("serviceAccountName") != "stgs":
        yield "a pod that is begun again under Ray's autoscaler, or one without the bucket's rights"
    start, volumes = group["rayStartParams"], {volume["name"]: volume for volume in pod.get("volumes", [])}
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
    if start.get("object-spilling-directory") not in mounts:
        yield "no volume to spill to"
    shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
    size, memory = _gibibytes(shm.get("sizeLimit", "0Gi")), _gibibytes(limits.get("memory", "0Gi"))
    if shm.get("medium") != "Memory" or not 0 < int(start.get("object-store-memory", 0)) < size * GIBIBYTE:
        yield "/dev/shm does not hold the object store"
    if size > memory / 3:
        yield "/dev/shm leaves too little memory"


def _gibibytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)Gi", text)
    return int(match[1]) if match else 0


def _ending(pod: dict[str, Any]) -> Iterator[str]:
    if pod.get("terminationGracePeriodSeconds", 30) <= STOP_WAIT_S:
        yield "the head is ended before its jobs have saved"
    if stop_script(pod) is None:
        yield "jobs are not told that the head ends"


def stop_script(pod: dict[str, Any]) -> str | None:
    """What the head runs, in Python, before it ends."""
    command = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    return command[2] if command[:2] == ["python", "-c"] else None


def _leaving(pod: dict[str, Any]) -> Iterator[str]:
    command = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if command[:3] != ["python", "-m", "cluster.spot_watch"] or "--leave-now" not in command:
        yield "work is not told that the pod ends"
    elif int(command[command.index("--within") + 1]) >= pod.get("terminationGracePeriodSeconds", 30):
        yield "the pod is ended before its work has saved"
    if not pod.get("nodeSelector", {}).get("nvidia.com/gpu.product", "").startswith("Tesla-V100"):
        yield "any GPU"
    if pod.get("automountServiceAccountToken") is not False:
        yield "workers may speak to Kubernetes"


def _secrets(job: dict[str, Any]) -> Iterator[str]:
    text = json.dumps(job)
    for what in (r"(?<!\d)\d{12}(?!\d)", r"\bAKIA", r"RAY_AUTH_TOKEN", r"SECRET", r"https?://", r"pip install"):
        if re.search(what, text):
            yield f"{what} stands in it"


@pytest.fixture(scope="module")
def job(repository: Path) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(
        json.dumps(yaml.safe_load((repository / "cluster" / "kuberay.yaml").read_text()))
    )
    return copied


def test_it_meets_every_requirement(job: dict[str, Any]) -> None:
    assert problems(job) == []


def test_the_head_stops_its_jobs_before_it_ends(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn:
        stopped: ClassVar[list[str]] = []

        def jobs(self) -> list[Job]:
            return [Job(name, "grid", None, name, None, None, None, "") for name in ("running", "complete", "waiting")]

        def stop(self, job_id: str) -> None:
            self.stopped.append(job_id)

    monkeypatch.setattr(submission, "connect", lambda address: StandIn())
    script = stop_script(job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"])
    assert script is not None
    exec(script, {})
    assert StandIn.stopped == ["running", "waiting"]


CLUSTER = ("spec", "rayClusterSpec")
HEAD, WORKER = (*CLUSTER, "headGroupSpec"), (*CLUSTER, "workerGroupSpecs", 0)
HEAD_POD, POD = (*HEAD, "template", "spec"), (*WORKER, "template", "spec")
CONTAINER = (*POD, "containers", 0)
MUTATIONS: list[tuple[tuple[str | int, ...], Any]] = [
    (("apiVersion",), "ray.io/v1alpha1"),
    (("kind",), "RayCluster"),
    (("spec", "entryPoint"), "python"),
    (("spec", "entrypoint"), DELETED),
    (("spec", "entrypoint"), "python -m jobs.grid s3://b/f --manifest s3://b/m --out s3://b/r"),
    (("spec", "entrypoint"), "python -m jobs.grid s3://b/f --manifest s3://b/m --out /tmp/r --resume"),
    (("spec", "submissionMode"), "Job"),
    (("spec", "backoffLimit"), 3),
    (("spec", "submitterConfig", "backoffLimit"), 0),
    (("spec", "submitterConfig", "backofLimit"), 10),
    (("spec", "runtimeEnvYAML"), DELETED),
    (("spec", "runtimeEnvYAML"), "env_vars: {RAY_JOB_STOP_WAIT_TIME_S: '3'}"),
    (("spec", "shutdownAfterJobFinishes"), "true"),
    (("spec", "shutdownAfterJobFinishes"), DELETED),
    ((*CLUSTER, "rayVersion"), "2.50.0"),
    ((*CLUSTER, "rayVersion"), 2.6),
    ((*CLUSTER, "authOptions"), DELETED),
    ((*CLUSTER, "authOptions", "mode"), "disabled"),
    ((*CLUSTER, "authOptions", "token"), "abc"),
    ((*CLUSTER, "enableInTreeAutoscaling"), False),
    ((*CLUSTER, "autoscalerOptions", "version"), "v1"),
    ((*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds"), DELETED),
    ((*CLUSTER, "autoscalerOptions", "securityContext"), DELETED),
    ((*CLUSTER, "autoscalingOptions"), {}),
    ((*HEAD, "serviceType"), "LoadBalancer"),
    ((*HEAD, "rayStartParams", "num-cpus"), 0),
    ((*HEAD, "rayStartParams", "num-cpus"), DELETED),
    ((*HEAD_POD, "containers", 0, "resources", "limits", GPU), "1"),
    ((*HEAD_POD, "containers", 0, "image"), "stgs-bmnas:latest"),
    ((*HEAD_POD, "volumes"), DELETED),
    ((*HEAD_POD, "terminationGracePeriodSeconds"), DELETED),
    ((*HEAD_POD, "terminationGracePeriodSeconds"), 60),
    ((*HEAD_POD, "containers", 0, "lifecycle"), DELETED),
    ((*WORKER, "minReplicas"), 1),
    ((*WORKER, "maxReplica"), 16),
    ((*WORKER, "replicas"), "0"),
    ((*WORKER, "rayStartParams", "object-store-memory"), "53687091200"),
    ((*WORKER, "rayStartParams", "object-spilling-directory"), "/tmp"),
    ((*POD, "restartPolicy"), "Sometimes"),
    ((*POD, "restartPolicy"), DELETED),
    ((*POD, "securitycontext"), {}),
    ((*POD, "securityContext", "runAsNonRoot"), False),
    ((*POD, "serviceAccountName"), DELETED),
    ((*POD, "automountServiceAccountToken"), DELETED),
    ((*POD, "nodeSelector"), DELETED),
    ((*POD, "tolerations", 0, "operator"), 1),
    ((*POD, "terminationGracePeriodSeconds"), 60),
    ((*POD, "volumes", 0, "emptyDir", "medium"), DELETED),
    ((*POD, "volumes", 0, "emptyDir", "sizeLimit"), "40Gi"),
    ((*CONTAINER, "image"), DELETED),
    ((*CONTAINER, "name"), DELETED),
    ((*CONTAINER, "securityContext", "privileged"), True),
    ((*CONTAINER, "securityContext"), DELETED),
    ((*CONTAINER, "resources", "limits", "memory"), "60Gi"),
    ((*CONTAINER, "resources", "limits", GPU), DELETED),
    ((*CONTAINER, "lifecycle"), DELETED),
    ((*CONTAINER, "lifecycle", "preStop", "exec", "command"), "sleep 10"),
    ((*CONTAINER, "volumeMounts"), DELETED),
    ((*CONTAINER, "env", 0), {"name": "RAY_AUTH_TOKEN", "value": "abc"}),
]


@pytest.mark.parametrize(("path", "value"), MUTATIONS, ids=str)
def test_each_requirement_is_looked_at(job: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    changed = copy.deepcopy(job)
    part: Any = changed
    for name in path[:-1]:
        part = part[name]
    if value is DELETED:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    assert problems(changed) != []
