/* nvmlDeviceGetFieldValues: numbers by id. Ids from nvml.h NVML_FI_DEV_*. */
#include <time.h>

#include "library.h"

enum { TYPE_UNSIGNED = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

struct field {
    unsigned first, last; /* ids, inclusive */
    int (*read)(const struct fixed *fixed, const struct changing *now, unsigned long long *value);
    unsigned type;
};

#define FIELD(name, expression)                                                                          \
    static int name(const struct fixed *fixed, const struct changing *now, unsigned long long *value) {   \
        (void)fixed;                                                                                     \
        (void)now;                                                                                       \
        *value = (unsigned long long)(expression);                                                       \
        return NVML_SUCCESS;                                                                             \
    }
FIELD(zero, 0)
FIELD(one, 1)
FIELD(link_state, fixed->nvlinks != 0)
FIELD(link_version, fixed->nvlink_version)
FIELD(memory_celsius, 38)
FIELD(power_mw, fixed->power_limit_mw / 10)
FIELD(power_limit_mw, fixed->power_limit_mw)
FIELD(least_power_limit_mw, fixed->power_limit_mw / 4)
FIELD(energy_mj, 1000000ull * (1 + fixed->minor))
FIELD(recovery_action, now->mig_current != now->mig_pending) /* none, or reset the GPU */

/* A GPU without NVLink has no count of them: not even 0. */
static int link_count(const struct fixed *fixed, const struct changing *now, unsigned long long *value) {
    (void)now;
    *value = fixed->nvlinks;
    return fixed->nvlinks ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

static const struct field FIELDS[] = {
    {1, 2, one, TYPE_UNSIGNED},                       /* ECC_CURRENT, ECC_PENDING */
    {3, 31, zero, TYPE_UNSIGNED_LONG_LONG},           /* ECC counters, retired pages */
    {32, 81, zero, TYPE_UNSIGNED_LONG_LONG},          /* NVLink error and bandwidth counters */
    {82, 82, memory_celsius, TYPE_UNSIGNED},          /* MEMORY_TEMP */
    {83, 83, energy_mj, TYPE_UNSIGNED_LONG_LONG},     /* TOTAL_ENERGY_CONSUMPTION */
    {91, 91, link_count, TYPE_UNSIGNED},              /* NVLINK_LINK_COUNT */
    {92, 95, zero, TYPE_UNSIGNED},                    /* RETIRED_PENDING_*, PCIE_REPLAY_* */
    {138, 141, zero, TYPE_UNSIGNED_LONG_LONG},        /* NVLINK_THROUGHPUT_* */
    {142, 145, zero, TYPE_UNSIGNED},                  /* REMAPPED_* */
    {165, 165, link_state, TYPE_UNSIGNED},            /* NVLINK_GET_STATE */
    {166, 166, link_version, TYPE_UNSIGNED},          /* NVLINK_GET_VERSION */
    {170, 170, zero, TYPE_UNSIGNED},                  /* C2C_LINK_COUNT */
    {173, 173, zero, TYPE_UNSIGNED},                  /* PCIE_COUNT_CORRECTABLE_ERRORS */
    {185, 186, power_mw, TYPE_UNSIGNED},              /* POWER_AVERAGE, POWER_INSTANT */
    {187, 187, least_power_limit_mw, TYPE_UNSIGNED},  /* POWER_MIN_LIMIT */
    {188, 190, power_limit_mw, TYPE_UNSIGNED},        /* POWER_MAX_LIMIT, _DEFAULT_LIMIT, _CURRENT_LIMIT */
    {192, 192, power_limit_mw, TYPE_UNSIGNED},        /* POWER_REQUESTED_LIMIT */
    {199, 199, one, TYPE_UNSIGNED},                   /* IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE */
    {230, 230, recovery_action, TYPE_UNSIGNED},       /* GET_GPU_RECOVERY_ACTION */
};

static void read_field(const struct fixed *fixed, const struct changing *now, nvmlFieldValue_t *value) {
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    value->timestamp = clock.tv_sec * 1000000ll + clock.tv_nsec / 1000;
    value->latency_us = 1;
    value->result = NVML_ERROR_NOT_SUPPORTED;
    for (unsigned i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
        if (value->field_id >= FIELDS[i].first && value->field_id <= FIELDS[i].last) {
            value->value_type = FIELDS[i].type;
            value->value.ull = 0;
            value->result = FIELDS[i].read(fixed, now, &value->value.ull);
        }
}

API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    struct changing now;
    DEVICE_CALL(device, values);
    NEED(count > 0);
    state_read(device->gpu, &now);
    for (int i = 0; i < count; i++) read_field(fixed_of(device), &now, &values[i]);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceClearFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    DEVICE_CALL(device, values);
    for (int i = 0; i < count; i++) values[i].result = NVML_SUCCESS;
    return NVML_SUCCESS;
}
