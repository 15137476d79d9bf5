/* The wire layout of the NVML calls that this library answers (NVML API 13). Names follow the public API, since they
 * are the interface; layouts follow its documentation and its Python binding. */
#ifndef NVML_ABI_H
#define NVML_ABI_H

#include <stdint.h>

typedef int nvmlReturn_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_RESET_REQUIRED = 16,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_IN_USE = 19,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_INSUFFICIENT_RESOURCES = 23,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_GPU_NOT_FOUND = 28,
    NVML_ERROR_UNKNOWN = 999,
};

/* Low 24 bits: size of the structure; high 8 bits: its version. */
#define NVML_VERSION(type, version) ((unsigned)(sizeof(type) | ((unsigned)(version) << 24)))

typedef struct handle *nvmlDevice_t;
typedef struct handle *nvmlGpuInstance_t;
typedef struct handle *nvmlComputeInstance_t;
typedef struct event_set *nvmlEventSet_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id;
} nvmlPciInfo_v1_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id, reserved[4];
} nvmlPciInfo_v2_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned version, domain, bus, device, pci_device_id, pci_subsystem_id, base_class, sub_class;
    char bus_id[32];
} nvmlPciInfoExt_v1_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned pid;
    unsigned long long used_memory;
} nvmlProcessInfo_v1_t;

typedef struct {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance_id, compute_instance_id;
} nvmlProcessInfo_v2_t;

typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines, gpu_instance_slices,
        compute_instance_slices;
    unsigned long long memory_mib;
} nvmlDeviceAttributes_t;

typedef struct {
    unsigned start, size;
} nvmlGpuInstancePlacement_t;

typedef struct {
    unsigned id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines;
    unsigned long long memory_mib;
} nvmlGpuInstanceProfileInfo_t;

typedef struct {
    unsigned version, id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines,
        ofa_engines;
    unsigned long long memory_mib;
    char name[96];
} nvmlGpuInstanceProfileInfo_v2_t;

typedef struct {
    unsigned version, id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines,
        ofa_engines;
    unsigned long long memory_mib;
    char name[96];
    unsigned capabilities;
} nvmlGpuInstanceProfileInfo_v3_t;

typedef struct {
    nvmlDevice_t device;
    unsigned id, profile_id;
    nvmlGpuInstancePlacement_t placement;
} nvmlGpuInstanceInfo_t;

typedef struct {
    unsigned id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines;
} nvmlComputeInstanceProfileInfo_t;

typedef struct {
    unsigned version, id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines,
        ofa_engines;
    char name[96];
} nvmlComputeInstanceProfileInfo_v2_t;

typedef struct {
    unsigned version, id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpeg_engines,
        ofa_engines;
    char name[96];
    unsigned capabilities;
} nvmlComputeInstanceProfileInfo_v3_t;

typedef struct {
    nvmlDevice_t device;
    nvmlGpuInstance_t gpu_instance;
    unsigned id, profile_id;
} nvmlComputeInstanceInfo_v1_t;

typedef struct {
    nvmlDevice_t device;
    nvmlGpuInstance_t gpu_instance;
    unsigned id, profile_id;
    nvmlGpuInstancePlacement_t placement;
} nvmlComputeInstanceInfo_t;

typedef struct {
    unsigned char cluster_uuid[16];
    nvmlReturn_t status;
    unsigned clique_id;
    unsigned char state;
} nvmlGpuFabricInfo_t;

typedef struct {
    unsigned version;
    unsigned char cluster_uuid[16];
    nvmlReturn_t status;
    unsigned clique_id;
    unsigned char state;
    unsigned health_mask;
} nvmlGpuFabricInfo_v2_t;

typedef struct {
    unsigned version;
    unsigned char cluster_uuid[16];
    nvmlReturn_t status;
    unsigned clique_id;
    unsigned char state;
    unsigned health_mask;
    unsigned char health_summary;
} nvmlGpuFabricInfo_v3_t;

typedef struct {
    unsigned id;
    unsigned char type;
} nvmlGpuFabricClique_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long type, data;
} nvmlEventData_v1_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance_id, compute_instance_id;
} nvmlEventData_t;

typedef union {
    double d;
    int si;
    unsigned ui;
    unsigned long ul;
    unsigned long long ull;
    long long sll;
    unsigned short us;
} nvmlValue_t;

typedef struct {
    unsigned field_id, scope_id;
    long long timestamp, latency_us;
    unsigned value_type;
    nvmlReturn_t result;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct {
    unsigned version, type;
    union {
        char text[41];
        unsigned char bytes[16];
    } value;
} nvmlUUID_v1_t;

typedef struct {
    unsigned version;
    unsigned char ib_guid[16], chassis_serial[16], slot_number, tray_index, host_id, peer_type, module_id;
} nvmlPlatformInfo_v2_t;

typedef struct {
    unsigned version, value;
} nvmlVersionedValue_t; /* addressing mode, capability mask, ... : one number */

typedef struct {
    unsigned version, sensor;
    int celsius;
} nvmlTemperature_v1_t;

_Static_assert(sizeof(nvmlPciInfo_t) == 68 && sizeof(nvmlFieldValue_t) == 40, "as pynvml's structures");
_Static_assert(sizeof(nvmlGpuInstanceProfileInfo_v2_t) == 152 && sizeof(nvmlComputeInstanceProfileInfo_v2_t) == 136, "");
_Static_assert(sizeof(nvmlGpuFabricInfo_t) == 28 && sizeof(nvmlGpuFabricInfo_v2_t) == 36, "");
_Static_assert(sizeof(nvmlGpuFabricInfo_v3_t) == 40 && sizeof(nvmlPlatformInfo_v2_t) == 44, "");
_Static_assert(sizeof(nvmlMemory_v2_t) == 40 && sizeof(nvmlEventData_t) == 32, "");

#endif
