/* Who and where a GPU is, and the memory that it has. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "library.h"
#include "mig.h"

API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found);

API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    CALL();
    NEED(count);
    *count = visible_gpu_count;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetCount(unsigned *count) __attribute__((alias("nvmlDeviceGetCount_v2")));

static int give_gpu(uint32_t gpu, nvmlDevice_t *device) {
    int result = check_device(&gpu_handles[gpu], 0);
    if (!result) *device = &gpu_handles[gpu];
    return result;
}

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    CALL();
    NEED(device && index < visible_gpu_count);
    return give_gpu(visible_gpus[index], device);
}
API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device)
    __attribute__((alias("nvmlDeviceGetHandleByIndex_v2")));

static int find_mig_uuid(uint32_t gpu, const char *uuid, nvmlDevice_t *device) {
    struct changing now;
    state_read(gpu, &now);
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
            const struct compute_instance *instance = &now.instances[gi].compute[ci];
            if (!now.instances[gi].used || !instance->used || strcasecmp(instance->uuid, uuid)) continue;
            if (!state_instance_visible(gpu, gi, ci)) continue;
            *device = &mig_handles[gpu][gi][ci];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

static int find_uuid(const char *uuid, nvmlDevice_t *device) {
    for (uint32_t i = 0; i < visible_gpu_count; i++) {
        if (!strcasecmp(state->gpus[visible_gpus[i]].fixed.uuid, uuid)) return give_gpu(visible_gpus[i], device);
        if (!strncmp(uuid, "MIG-", 4) && find_mig_uuid(visible_gpus[i], uuid, device) == NVML_SUCCESS)
            return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    CALL();
    NEED(uuid && device);
    return find_uuid(uuid, device);
}

API nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_v1_t *uuid, nvmlDevice_t *device) {
    char text[48];
    CALL();
    NEED(uuid && device);
    if (uuid->version != NVML_VERSION(nvmlUUID_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    NEED(uuid->type == 1 || uuid->type == 2); /* text, bytes */
    if (uuid->type == 1) {
        snprintf(text, sizeof text, "%.41s", uuid->value.text);
        return find_uuid(text, device);
    }
    const unsigned char *b = uuid->value.bytes;
    int length = snprintf(text, sizeof text, "GPU-");
    for (int i = 0; i < 16; i++)
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%02x",
                           i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    return find_uuid(text, device);
}

API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    unsigned domain = 0, bus, slot, function = 0;
    CALL();
    NEED(bus_id && device);
    if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
        domain = 0;
        NEED(sscanf(bus_id, "%x:%x.%x", &bus, &slot, &function) >= 2);
    }
    for (uint32_t i = 0; i < visible_gpu_count; i++) {
        const struct fixed *fixed = &state->gpus[visible_gpus[i]].fixed;
        if (fixed->pci_domain == domain && fixed->pci_bus == bus && fixed->pci_device == slot && !function)
            return give_gpu(visible_gpus[i], device);
    }
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
    __attribute__((alias("nvmlDeviceGetHandleByPciBusId_v2")));

API nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    CALL();
    NEED(serial && device);
    for (uint32_t i = 0; i < visible_gpu_count; i++)
        if (!strcmp(state->gpus[visible_gpus[i]].fixed.serial, serial)) return give_gpu(visible_gpus[i], device);
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
    char text[160], part[64];
    DEVICE_CALL(device, name);
    const struct fixed *fixed = fixed_of(device);
    snprintf(text, sizeof text, "%s", fixed->name);
    if (device->kind == KIND_MIG_DEVICE) {
        struct changing now;
        TRY(check_instance(device, &now));
        const struct gpu_instance *instance = &now.instances[device->gi];
        name_compute_instance(&fixed->profiles[instance->profile], instance->compute[device->ci].slices, part,
                              sizeof part);
        snprintf(text, sizeof text, "%s MIG %s", fixed->name, part);
    }
    return give_text(name, length, text);
}

API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) {
    DEVICE_CALL(device, uuid);
    if (device->kind == KIND_GPU) return give_text(uuid, length, fixed_of(device)->uuid);
    struct changing now;
    TRY(check_instance(device, &now));
    return give_text(uuid, length, now.instances[device->gi].compute[device->ci].uuid);
}

API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    DEVICE_CALL(device, index);
    if (device->kind == KIND_MIG_DEVICE) {
        nvmlDevice_t other;
        for (*index = 0; *index < fixed_of(device)->max_mig_devices; (*index)++)
            if (!nvmlDeviceGetMigDeviceHandleByIndex(&gpu_handles[device->gpu], *index, &other) && other == device)
                return NVML_SUCCESS;
        return NVML_ERROR_NOT_FOUND;
    }
    for (*index = 0; *index < visible_gpu_count; (*index)++)
        if (visible_gpus[*index] == device->gpu) return NVML_SUCCESS;
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    DEVICE_CALL(device, pci);
    const struct fixed *f = fixed_of(device);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04X:%02X:%02X.0", f->pci_domain & 0xffff,
             f->pci_bus & 0xff, f->pci_device & 0xff);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", f->pci_domain, f->pci_bus, f->pci_device);
    pci->domain = f->pci_domain;
    pci->bus = f->pci_bus;
    pci->device = f->pci_device;
    pci->pci_device_id = f->pci_device_id;
    pci->pci_subsystem_id = f->pci_subsystem_id;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t *pci) {
    nvmlPciInfo_t third;
    NEED(pci);
    TRY(nvmlDeviceGetPciInfo_v3(device, &third));
    memset(pci, 0, sizeof *pci);
    memcpy(pci, &third, offsetof(nvmlPciInfo_t, bus_id));
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v1_t *pci) {
    nvmlPciInfo_t third;
    NEED(pci);
    TRY(nvmlDeviceGetPciInfo_v3(device, &third));
    memcpy(pci, &third, sizeof *pci);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t *pci) {
    nvmlPciInfo_t third;
    NEED(pci);
    if (pci->version != NVML_VERSION(nvmlPciInfoExt_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    TRY(nvmlDeviceGetPciInfo_v3(device, &third));
    *pci = (nvmlPciInfoExt_v1_t){pci->version, third.domain, third.bus, third.device, third.pci_device_id,
                                 third.pci_subsystem_id, 3, 2, ""}; /* 3D controller */
    memcpy(pci->bus_id, third.bus_id, sizeof pci->bus_id);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    DEVICE_CALL(device, major);
    NEED(minor);
    *major = (int)fixed_of(device)->compute_major;
    *minor = (int)fixed_of(device)->compute_minor;
    return NVML_SUCCESS;
}

static int memory_of(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    struct changing now;
    const struct fixed *fixed = fixed_of(device);
    state_read(device->gpu, &now);
    unsigned long long total = fixed->memory_bytes, reserved = fixed->reserved_bytes, used = 0;
    if (device->kind == KIND_MIG_DEVICE) {
        total = fixed->profiles[now.instances[device->gi].profile].memory_mib << 20;
        reserved = 0;
    }
    for (uint32_t i = 0; i < now.process_count; i++)
        if (device->kind == KIND_GPU || now.processes[i].gpu_instance == device->gi) used += now.processes[i].memory_bytes;
    if (used > total - reserved) used = total - reserved;
    memory->total = total;
    memory->reserved = reserved;
    memory->used = used;
    memory->free = total - reserved - used;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlMemory_v2_t second;
    DEVICE_CALL(device, memory);
    TRY(memory_of(device, &second));
    *memory = (nvmlMemory_t){second.total, second.free, second.used + second.reserved};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    DEVICE_CALL(device, memory);
    if (memory->version != NVML_VERSION(nvmlMemory_v2_t, 2)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return memory_of(device, memory);
}

API nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    DEVICE_CALL(device, memory);
    *memory = (nvmlMemory_t){fixed_of(device)->bar1_bytes, fixed_of(device)->bar1_bytes - (1 << 20), 1 << 20};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor) {
    DEVICE_CALL(device, minor);
    if (device->kind == KIND_MIG_DEVICE) return NVML_ERROR_NOT_SUPPORTED;
    *minor = fixed_of(device)->minor;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned *node) {
    GPU_CALL(device, node);
    if (fixed_of(device)->addressing_mode != 2) return NVML_ERROR_NOT_SUPPORTED; /* GPU memory as a NUMA node: ATS */
    *node = 2 + 8 * fixed_of(device)->minor;
    return NVML_SUCCESS;
}
