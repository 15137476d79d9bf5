/* How GPUs hang together: NVLink fabric, NVLink ports, PCIe topology. */
#include <stddef.h>

#include "library.h"

enum { TOPOLOGY_INTERNAL = 0, TOPOLOGY_HOSTBRIDGE = 30, TOPOLOGY_NODE = 40, TOPOLOGY_SYSTEM = 50 };
enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5 };
enum { P2P_CAP_NVLINK = 2, P2P_CAP_COUNT = 6 };

/* The members that all versions share, in the order of version 3. */
static int fabric_of(nvmlDevice_t device, nvmlGpuFabricInfo_v3_t *info) {
    struct changing now;
    /* nvml.h: "for Hopper or newer". Those answer without a fabric too: state 0, not supported, and zeros. */
    if (!fixed_of(device)->has_fabric && fixed_of(device)->architecture < ARCHITECTURE_HOPPER)
        return NVML_ERROR_NOT_SUPPORTED;
    state_read(device->gpu, &now);
    memcpy(info->cluster_uuid, now.fabric_cluster, sizeof info->cluster_uuid);
    info->status = (nvmlReturn_t)now.fabric_status;
    info->clique_id = now.fabric_clique;
    info->state = (unsigned char)now.fabric_state;
    info->health_mask = now.fabric_health_mask;
    info->health_summary = (unsigned char)now.fabric_health_summary;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    nvmlGpuFabricInfo_v3_t third;
    GPU_CALL(device, info);
    TRY(fabric_of(device, &third));
    memcpy(info, (char *)&third + offsetof(nvmlGpuFabricInfo_v3_t, cluster_uuid), offsetof(nvmlGpuFabricInfo_t, state) + 1);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, void *info) {
    nvmlGpuFabricInfo_v3_t third;
    GPU_CALL(device, info);
    unsigned version = *(unsigned *)info;
    size_t size = version == NVML_VERSION(nvmlGpuFabricInfo_v2_t, 2)   ? sizeof(nvmlGpuFabricInfo_v2_t)
                  : version == NVML_VERSION(nvmlGpuFabricInfo_v3_t, 3) ? sizeof(nvmlGpuFabricInfo_v3_t)
                                                                       : 0;
    if (!size) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memset(&third, 0, sizeof third);
    third.version = version;
    TRY(fabric_of(device, &third));
    memcpy(info, &third, size); /* version 3 only appends */
    return NVML_SUCCESS;
}

/* NVLink: every port of a GPU goes to a switch, all are up. */
static int check_link(nvmlDevice_t device, unsigned link) {
    NEED(link < 36); /* nvml.h NVML_NVLINK_MAX_LINKS */
    return link < fixed_of(device)->nvlinks ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active) {
    GPU_CALL(device, active);
    TRY(check_link(device, link));
    *active = 1;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned link, unsigned *version) {
    GPU_CALL(device, version);
    TRY(check_link(device, link));
    *version = fixed_of(device)->nvlink_version;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned link, unsigned capability,
                                               unsigned *supported) {
    GPU_CALL(device, supported);
    TRY(check_link(device, link));
    NEED(capability < 6);
    *supported = capability != 4; /* all but an SLI bridge */
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned link, unsigned *type) {
    GPU_CALL(device, type);
    TRY(check_link(device, link));
    *type = 2; /* nvml.h NVML_NVLINK_DEVICE_TYPE_SWITCH */
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned link, nvmlPciInfo_t *pci) {
    GPU_CALL(device, pci);
    TRY(check_link(device, link));
    *pci = (nvmlPciInfo_t){.bus_id_legacy = "0000:00:00.0", .bus_id = "00000000:00:00.0"}; /* a switch across the fabric */
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned link, nvmlPciInfo_v1_t *pci) {
    GPU_CALL(device, pci);
    TRY(check_link(device, link));
    *pci = (nvmlPciInfo_v1_t){.bus_id_legacy = "0000:00:00.0"};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned link, unsigned counter,
                                                 unsigned long long *value) {
    GPU_CALL(device, value);
    TRY(check_link(device, link));
    NEED(counter < 5);
    *value = 0;
    return NVML_SUCCESS;
}

/* PCIe: GPUs of one NUMA node meet there, others across sockets. */
static int meeting_level(nvmlDevice_t one, nvmlDevice_t other) {
    if (one->gpu == other->gpu) return TOPOLOGY_INTERNAL;
    return fixed_of(one)->numa_node == fixed_of(other)->numa_node ? TOPOLOGY_NODE : TOPOLOGY_SYSTEM;
}

API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned *level) {
    GPU_CALL(one, level);
    TRY(check_device(other, 0));
    *level = (unsigned)meeting_level(one, other);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, unsigned level, unsigned *count,
                                                  nvmlDevice_t *nearest) {
    unsigned found = 0;
    GPU_CALL(device, count);
    for (uint32_t i = 0; i < visible_gpu_count; i++) {
        nvmlDevice_t other = &gpu_handles[visible_gpus[i]];
        if (other == device || (unsigned)meeting_level(device, other) != level) continue;
        if (nearest && found < *count) nearest[found] = other;
        found++;
    }
    if (!nearest || found < *count) *count = found;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, unsigned capability, unsigned *status) {
    GPU_CALL(one, status);
    TRY(check_device(other, 0));
    NEED(capability < P2P_CAP_COUNT);
    int linked = fixed_of(one)->nvlinks && fixed_of(other)->nvlinks;
    *status = capability == P2P_CAP_NVLINK && !linked ? P2P_NOT_SUPPORTED : P2P_OK;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t other, int *same) {
    GPU_CALL(one, same);
    TRY(check_device(other, 0));
    *same = one == other;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned words, unsigned long *nodes,
                                             unsigned scope) {
    GPU_CALL(device, nodes);
    NEED(words && scope < 2);
    memset(nodes, 0, words * sizeof *nodes);
    if (fixed_of(device)->numa_node >= 0) nodes[0] = 1ul << fixed_of(device)->numa_node;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned words, unsigned long *cpus) {
    GPU_CALL(device, cpus);
    NEED(words);
    memset(cpus, 0, words * sizeof *cpus);
    cpus[0] = 1;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned words, unsigned long *cpus,
                                                     unsigned scope) {
    NEED(scope < 2);
    return nvmlDeviceGetCpuAffinity(device, words, cpus);
}

API nvmlReturn_t nvmlDeviceGetPlatformInfo(nvmlDevice_t device, nvmlPlatformInfo_v2_t *info) {
    GPU_CALL(device, info);
    const struct fixed *fixed = fixed_of(device);
    if (info->version != NVML_VERSION(nvmlPlatformInfo_v2_t, 2)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (!fixed->chassis_serial[0]) return NVML_ERROR_NOT_SUPPORTED;
    *info = (nvmlPlatformInfo_v2_t){.version = info->version, .slot_number = (unsigned char)fixed->slot_number,
                                    .tray_index = (unsigned char)fixed->tray_index, .host_id = 1, .peer_type = 1,
                                    .module_id = (unsigned char)fixed->module_id};
    memcpy(info->chassis_serial, fixed->chassis_serial, sizeof info->chassis_serial);
    return NVML_SUCCESS;
}
