/* What a GPU is set to and what it measures: modes, clocks, sensors, error counters, processes. */
#include "library.h"

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

/* Processes: a GPU has those of all its instances, a MIG device its own. */
static int runs_on(const struct process *process, const struct handle *device) {
    if (device->kind != KIND_MIG_DEVICE) return 1;
    return process->gpu_instance == device->gi &&
           (process->compute_instance == WHOLE_GPU || process->compute_instance == device->ci);
}

static int list_processes(const struct handle *device, uint32_t type, unsigned *count, nvmlProcessInfo_v2_t *infos) {
    struct changing now;
    uint32_t found = 0;
    state_read(device->gpu, &now);
    for (uint32_t i = 0; i < now.process_count; i++) {
        const struct process *p = &now.processes[i];
        if (p->type != type || !runs_on(p, device)) continue;
        if (found < *count && infos)
            infos[found] = (nvmlProcessInfo_v2_t){p->pid, p->memory_bytes, p->gpu_instance, p->compute_instance};
        found++;
    }
    int fits = found <= *count;
    *count = found;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static int list_processes_v1(const struct handle *device, uint32_t type, unsigned *count, nvmlProcessInfo_v1_t *infos) {
    nvmlProcessInfo_v2_t all[MAX_PROCESSES];
    unsigned found = MAX_PROCESSES, room = *count;
    TRY(list_processes(device, type, &found, all));
    *count = found;
    if (found > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    NEED(infos || !found);
    for (unsigned i = 0; i < found; i++) infos[i] = (nvmlProcessInfo_v1_t){all[i].pid, all[i].used_memory};
    return NVML_SUCCESS;
}

#define PROCESSES(function, type)                                                                                    \
    API nvmlReturn_t function##_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos) {              \
        DEVICE_CALL(device, count);                                                                                  \
        return list_processes(device, type, count, infos);                                                           \
    }                                                                                                                \
    API nvmlReturn_t function##_v2(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos)                \
        __attribute__((alias(#function "_v3")));                                                                     \
    API nvmlReturn_t function(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v1_t *infos) {                   \
        DEVICE_CALL(device, count);                                                                                  \
        return list_processes_v1(device, type, count, infos);                                                        \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses, PROCESS_COMPUTE)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, PROCESS_GRAPHICS)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, PROCESS_MPS)
