"""Names that other people's manifests and programs rely on; none of them is ours to change.

Sources: NVIDIA's DRA driver, AMD's DRA driver, k8s.io/api resource/v1, KEP-4815.
"""

from typing import Final

# Drivers, as in ResourceSlice.spec.driver and in opaque configs.
NVIDIA_GPU_DRIVER: Final = "gpu.nvidia.com"
AMD_GPU_DRIVER: Final = "gpu.amd.com"
COMPUTE_DOMAIN_DRIVER: Final = "compute-domain.nvidia.com"

# API version of ResourceClaims and ResourceSlices.
DRA_API_VERSION: Final = "resource.k8s.io/v1"

# API groups and versions of the opaque configs and custom resources.
RESOURCE_GROUP: Final = "resource.nvidia.com"
RESOURCE_API_VERSION: Final = "resource.nvidia.com/v1beta1"
AMD_CONFIG_API_VERSION: Final = "gpu.resource.amd.com/v1alpha1"
KAIWO_GROUP: Final = "kaiwo.silogen.ai"
KAIWO_API_VERSION: Final = "kaiwo.silogen.ai/v1alpha1"

# DeviceClasses.
GPU_CLASS: Final = "gpu.nvidia.com"
MIG_CLASS: Final = "mig.nvidia.com"
AMD_GPU_CLASS: Final = "gpu.amd.com"
CHANNEL_CLASS: Final = "compute-domain-default-channel.nvidia.com"
DAEMON_CLASS: Final = "compute-domain-daemon.nvidia.com"

# ComputeDomains. The same string is label key and finalizer; the label's value is the domain's UID.
COMPUTE_DOMAIN_LABEL: Final = "resource.nvidia.com/computeDomain"
COMPUTE_DOMAIN_FINALIZER: Final = "resource.nvidia.com/computeDomain"
COMPUTE_DOMAIN_CLIQUE_LABEL: Final = "resource.nvidia.com/computeDomain.cliqueID"
COMPUTE_DOMAIN_TARGET_LABEL: Final = "resource.nvidia.com/computeDomainTarget"
GPU_CLIQUE_NODE_LABEL: Final = "nvidia.com/gpu.clique"

# Standard device attributes (k8s.io/dynamic-resource-allocation/deviceattribute).
PCI_BUS_ID_ATTRIBUTE: Final = "resource.kubernetes.io/pciBusID"
PCIE_ROOT_ATTRIBUTE: Final = "resource.kubernetes.io/pcieRoot"
NUMA_NODE_ATTRIBUTE: Final = "resource.kubernetes.io/numaNode"

# CDI vendors and classes; a device's CDI id is <vendor>/<class>=<name>.
NVIDIA_CDI_VENDOR: Final = "k8s.gpu.nvidia.com"
AMD_CDI_VENDOR: Final = "k8s.gpu.amd.com"
COMPUTE_DOMAIN_CDI_VENDOR: Final = "k8s.compute-domain.nvidia.com"
CDI_CLAIM_CLASS: Final = "claim"

# Field manager of our server-side applies.
FIELD_MANAGER: Final = "partita"
