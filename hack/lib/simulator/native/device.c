/* Who and where a GPU is, and what it reports. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "library.h"
#include "mig.h"

API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found);

static const struct changing *current(const struct handle *device) {
    const struct gpu *gpu = &state->gpus[device->gpu];
    return &gpu->slots[gpu->generation & 1];
}

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

/* Calls whose whole answer is one number. */
#define NUMBER(function, expression)                             \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned *value) { \
        GPU_CALL(device, value);                                 \
        const struct fixed *f = fixed_of(device);                \
        (void)f;                                                 \
        *value = (unsigned)(expression);                         \
        return NVML_SUCCESS;                                     \
    }
/* The same for MIG devices too. */
#define NUMBER_MIG(function, expression)                         \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned *value) { \
        DEVICE_CALL(device, value);                              \
        const struct fixed *f = fixed_of(device);                \
        (void)f;                                                 \
        *value = (unsigned)(expression);                         \
        return NVML_SUCCESS;                                     \
    }

NUMBER(nvmlDeviceGetModuleId, f->module_id)
NUMBER_MIG(nvmlDeviceGetBrand, f->brand)
NUMBER_MIG(nvmlDeviceGetArchitecture, f->architecture)
NUMBER(nvmlDeviceGetNumGpuCores, f->cores)
NUMBER(nvmlDeviceGetMemoryBusWidth, f->memory_bus_bits)
NUMBER(nvmlDeviceGetBusType, 2)
NUMBER(nvmlDeviceGetBoardId, f->pci_bus << 8)
NUMBER(nvmlDeviceGetMultiGpuBoard, 0)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, f->pcie_generation)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, f->pcie_generation)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, f->pcie_generation)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, f->pcie_width)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, f->pcie_width)
NUMBER(nvmlDeviceGetPcieReplayCounter, 0)
NUMBER(nvmlDeviceGetPcieSpeed, 1000u << f->pcie_generation)
NUMBER(nvmlDeviceGetPowerUsage, f->power_limit_mw / 10)
NUMBER(nvmlDeviceGetPowerManagementLimit, f->power_limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, f->power_limit_mw)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, f->power_limit_mw)
NUMBER(nvmlDeviceGetPowerManagementMode, 1)
NUMBER(nvmlDeviceGetPerformanceState, 0)
NUMBER(nvmlDeviceGetPowerState, 0)
NUMBER(nvmlDeviceGetDisplayMode, 0)
NUMBER(nvmlDeviceGetDisplayActive, 0)
NUMBER(nvmlDeviceGetVirtualizationMode, 0)
NUMBER(nvmlDeviceGetAccountingMode, 0)
NUMBER(nvmlDeviceGetAccountingBufferSize, 4000)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, 0)
NUMBER(nvmlDeviceGetInforomConfigurationChecksum, 0x5ca1ab1e)
NUMBER(nvmlDeviceGetIrqNum, 64 + f->minor)


NUMBER(nvmlDeviceGetPersistenceMode, current(device)->persistence)
NUMBER_MIG(nvmlDeviceGetComputeMode, current(device)->compute_mode)

#define SETTER(function, field, limit)                             \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned value) { \
        struct change change;                                      \
        CALL();                                                    \
        TRY(check_device(device, 0));                              \
        NEED(value <= (limit));                                    \
        TRY(change_begin(&change, device->gpu));                   \
        change.next->field = value;                                \
        change_commit(&change);                                    \
        return NVML_SUCCESS;                                       \
    }

SETTER(nvmlDeviceSetPersistenceMode, persistence, 1)
SETTER(nvmlDeviceSetComputeMode, compute_mode, 3)

/* Texts. */
#define TEXT(function, expression)                                           \
    API nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned length) { \
        GPU_CALL(device, text);                                              \
        return give_text(text, length, expression);                          \
    }

TEXT(nvmlDeviceGetSerial, fixed_of(device)->serial)
TEXT(nvmlDeviceGetBoardPartNumber, fixed_of(device)->board_part_number)
TEXT(nvmlDeviceGetVbiosVersion, fixed_of(device)->vbios)
TEXT(nvmlDeviceGetInforomImageVersion, "G520.0200.00.05")

API nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, unsigned object, char *text, unsigned length) {
    static const char *const VERSIONS[] = {"2.1", "7.16", NULL, NULL};
    GPU_CALL(device, text);
    NEED(object < 4);
    return VERSIONS[object] ? give_text(text, length, VERSIONS[object]) : NVML_ERROR_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *text) {
    GPU_CALL(device, text);
    return give_text(text, 64, state->driver_version);
}

API nvmlReturn_t nvmlDeviceGetGspFirmwareMode(nvmlDevice_t device, unsigned *enabled, unsigned *by_default) {
    GPU_CALL(device, enabled);
    NEED(by_default);
    *enabled = *by_default = 1;
    return NVML_SUCCESS;
}

/* Structures of a version and one number. */
static int give_value(nvmlVersionedValue_t *value, unsigned number) {
    if (value->version != NVML_VERSION(nvmlVersionedValue_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    value->value = number;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetAddressingMode(nvmlDevice_t device, nvmlVersionedValue_t *mode) {
    GPU_CALL(device, mode);
    return give_value(mode, fixed_of(device)->addressing_mode);
}

API nvmlReturn_t nvmlDeviceGetCapabilities(nvmlDevice_t device, nvmlVersionedValue_t *capabilities) {
    GPU_CALL(device, capabilities);
    return give_value(capabilities, 0);
}

API nvmlReturn_t nvmlDeviceGetC2cModeInfoV(nvmlDevice_t device, unsigned *enabled) {
    GPU_CALL(device, enabled);
    *enabled = fixed_of(device)->addressing_mode == 2;
    return NVML_SUCCESS;
}

/* Sensors: an idle GPU in a warm room. */
API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *celsius) {
    GPU_CALL(device, celsius);
    NEED(sensor == 0);
    *celsius = 31 + fixed_of(device)->minor % 8;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *temperature) {
    GPU_CALL(device, temperature);
    if (temperature->version != NVML_VERSION(nvmlTemperature_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    NEED(temperature->sensor == 0);
    temperature->celsius = 31 + (int)(fixed_of(device)->minor % 8);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned kind, unsigned *celsius) {
    static const unsigned LIMITS[] = {95, 92, 95, 87};
    GPU_CALL(device, celsius);
    NEED(kind < 7);
    if (kind >= 4) return NVML_ERROR_NOT_SUPPORTED;
    *celsius = LIMITS[kind];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *least, unsigned *most) {
    GPU_CALL(device, least);
    NEED(most);
    *least = fixed_of(device)->power_limit_mw / 4;
    *most = fixed_of(device)->power_limit_mw;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    GPU_CALL(device, millijoules);
    *millijoules = 1000000ull * (1 + fixed_of(device)->minor);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    GPU_CALL(device, utilization);
    if (current(device)->mig_current) return NVML_ERROR_NOT_SUPPORTED;
    *utilization = current(device)->process_count ? (nvmlUtilization_t){97, 40} : (nvmlUtilization_t){0, 0};
    return NVML_SUCCESS;
}

static int engine_utilization(nvmlDevice_t device, unsigned *percent, unsigned *period_us) {
    NEED(period_us);
    if (current(device)->mig_current) return NVML_ERROR_NOT_SUPPORTED;
    *percent = 0;
    *period_us = 167000;
    return NVML_SUCCESS;
}

#define ENGINE(function)                                                                \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned *percent, unsigned *period_us) { \
        GPU_CALL(device, percent);                                                      \
        return engine_utilization(device, percent, period_us);                          \
    }
ENGINE(nvmlDeviceGetEncoderUtilization)
ENGINE(nvmlDeviceGetDecoderUtilization)
ENGINE(nvmlDeviceGetJpgUtilization)
ENGINE(nvmlDeviceGetOfaUtilization)

static unsigned clock_of(const struct fixed *fixed, unsigned type) {
    return type == 2 ? fixed->max_memory_clock_mhz : fixed->max_sm_clock_mhz;
}

API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    GPU_CALL(device, mhz);
    NEED(type < 4);
    *mhz = type == 2 || current(device)->process_count ? clock_of(fixed_of(device), type) : 345;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    GPU_CALL(device, mhz);
    NEED(type < 4);
    *mhz = clock_of(fixed_of(device), type);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    GPU_CALL(device, mhz);
    NEED(type < 4);
    *mhz = clock_of(fixed_of(device), type);
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, unsigned type, unsigned *mhz)
    __attribute__((alias("nvmlDeviceGetApplicationsClock")));

API nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    GPU_CALL(device, reasons);
    *reasons = current(device)->process_count ? 0 : 1; /* idle */
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
    __attribute__((alias("nvmlDeviceGetCurrentClocksEventReasons")));

API nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    GPU_CALL(device, reasons);
    *reasons = 0x1ff;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetSupportedClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
    __attribute__((alias("nvmlDeviceGetSupportedClocksEventReasons")));

API nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned counter, unsigned *kib_per_s) {
    GPU_CALL(device, kib_per_s);
    NEED(counter < 2);
    *kib_per_s = 0;
    return NVML_SUCCESS;
}

/* Memory errors: none. */
API nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *now, unsigned *pending) {
    GPU_CALL(device, now);
    NEED(pending);
    *now = *pending = 1;
    return NVML_SUCCESS;
}

NUMBER(nvmlDeviceGetDefaultEccMode, 1)

API nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned error, unsigned counter,
                                             unsigned long long *count) {
    GPU_CALL(device, count);
    NEED(error < 2 && counter < 2);
    *count = 0;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned error, unsigned counter,
                                                 unsigned location, unsigned long long *count) {
    GPU_CALL(device, count);
    NEED(error < 2 && counter < 2 && location < 8);
    *count = 0;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected,
                                           unsigned *pending, unsigned *failed) {
    GPU_CALL(device, corrected);
    NEED(uncorrected && pending && failed);
    *corrected = *uncorrected = *pending = *failed = 0;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, unsigned values[5]) {
    GPU_CALL(device, values);
    memset(values, 0, 5 * sizeof *values);
    values[0] = 640; /* banks with all of their spare rows */
    return NVML_SUCCESS;
}

/* Processes. */
static int list_processes(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos) {
    struct changing now;
    uint32_t found = 0;
    state_read(device->gpu, &now);
    for (uint32_t i = 0; i < now.process_count; i++) {
        const struct process *p = &now.processes[i];
        if (device->kind == KIND_MIG_DEVICE && p->gpu_instance != device->gi) continue;
        if (found < *count && infos)
            infos[found] = (nvmlProcessInfo_v2_t){p->pid, p->memory_bytes, p->gpu_instance, p->compute_instance};
        found++;
    }
    int fits = found <= *count;
    *count = found;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                         nvmlProcessInfo_v2_t *infos) {
    DEVICE_CALL(device, count);
    return list_processes(device, count, infos);
}
API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count,
                                                         nvmlProcessInfo_v2_t *infos)
    __attribute__((alias("nvmlDeviceGetComputeRunningProcesses_v3")));

API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned *count,
                                                      nvmlProcessInfo_v1_t *infos) {
    nvmlProcessInfo_v2_t all[MAX_PROCESSES];
    DEVICE_CALL(device, count);
    unsigned found = MAX_PROCESSES, room = *count;
    TRY(list_processes(device, &found, all));
    *count = found;
    if (found > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    NEED(infos || !found);
    for (unsigned i = 0; i < found; i++) infos[i] = (nvmlProcessInfo_v1_t){all[i].pid, all[i].used_memory};
    return NVML_SUCCESS;
}

/* None of these kinds runs here. */
#define NO_PROCESSES(function)                                                        \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned *count, void *infos) {     \
        DEVICE_CALL(device, count);                                                   \
        (void)infos;                                                                  \
        *count = 0;                                                                   \
        return NVML_SUCCESS;                                                          \
    }
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)
