"""What a Ray cluster has, asked of its control service before a run joins it."""

from __future__ import annotations

import json

from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus

from launch.control.capacity import Amounts, Room
from launch.control.ground import UNBOUNDED_GIB, Ground

ASK_S = 10.0
LIVING = (NodeStatus.RUNNING, NodeStatus.IDLE)  # not those that are about to go
# What Ray calls the type of a node that somebody started by hand.
NAMELESS_TYPE = "node_"


def look_at(where: str) -> Ground:
    """where: host:port of the control service, which has been found to be one of ours"""
    client = GcsClient(address=where)
    status = GetClusterStatusReply()
    status.ParseFromString(client.get_cluster_status(timeout_s=ASK_S))
    states = [n for n in status.cluster_resource_state.node_states if n.status in LIVING]
    told = client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None, timeout=ASK_S)
    head = where.rpartition(":")[0].strip("[]")
    states.sort(key=lambda node: (node.node_ip_address != head, node.node_ip_address))
    return Ground(
        where=f"the cluster at {where}",
        nodes=tuple(
            Room(
                node.node_ip_address,
                Amounts(
                    node.total_resources.get("CPU", 0.0),
                    node.total_resources.get("GPU", 0.0),
                    UNBOUNDED_GIB,
                ),
            )
            for node in states
        ),
        free_cpus=sum(node.available_resources.get("CPU", 0.0) for node in states),
        free_gpus=sum(node.available_resources.get("GPU", 0.0) for node in states),
        can_grow=can_grow(status, told),
    )


def can_grow(status: GetClusterStatusReply, told: bytes | None) -> bool:
    """Whether an autoscaler with types of nodes to choose from looks after the cluster.

    Every head runs one that merely watches; nodes have no types of their own then.
    told: the report of an autoscaler of the first generation, JSON
    """
    types = set()
    if status.autoscaling_state.autoscaler_state_version:
        types = {n.ray_node_type_name for n in status.cluster_resource_state.node_states}
    if told:
        types |= json.loads(told).get("autoscaler_report", {}).get("active_nodes", {}).keys()
    return any(name and not name.startswith(NAMELESS_TYPE) for name in types)
