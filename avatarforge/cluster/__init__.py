"""AvatarForge on one machine: a private Ray cluster that starts and stops with us."""

from avatarforge.cluster.local import ClusterError, LocalCluster, NotEnoughGpus, PortInUse
from avatarforge.cluster.run_folder import DataFolderInUse

__all__ = ["ClusterError", "DataFolderInUse", "LocalCluster", "NotEnoughGpus", "PortInUse"]
