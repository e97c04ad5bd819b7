"""The provider `kubernetes` over a fake API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kube_server

from autoscaler.providers.kubernetes import KubernetesProvider, Options


class KubernetesRig:
    """One cluster; each pool of each stack has its own Deployment."""

    def __init__(self, cluster: kube_server.Cluster, options: dict[str, Any]) -> None:
        self._cluster = cluster
        self._options = options

    def provider(self, pool: str = "cpu", stack: str = "ours") -> KubernetesProvider:
        name = f"{stack}-{pool}"
        if name not in self._cluster.deployments:
            self._cluster.deploy(name, pool=pool)
        return KubernetesProvider(pool, Options(**self._options | {"deployment": name}), stack=stack)

    def vanish(self, instance_id: str) -> None:
        """Somebody scales down by hand, and this one goes; of itself a pod would be replaced."""
        with self._cluster.lock:
            del self._cluster.pods[instance_id]
            self._cluster.deployments["ours-cpu"]["spec"]["replicas"] -= 1

    def exhaust(self) -> None:
        self._cluster.quota = len(self._cluster.pods)


@contextmanager
def rig(folder: Path) -> Iterator[KubernetesRig]:
    cluster = kube_server.Cluster()
    cluster.hurried = True
    with kube_server.serving(cluster, folder) as options:
        yield KubernetesRig(cluster, options | {"wait_s": 0.5})
