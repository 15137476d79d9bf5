/* Events: every process that waits sees every event that was injected after it registered. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

#define LONGEST_SLEEP_MS 500 /* a waiter that missed a wake-up looks again after this */

struct event_set {
    uint32_t magic, next; /* next: number of the first event that was not looked at */
    unsigned long long types[MAX_GPUS];
};

#define SET_MAGIC 0x45564e54u

static int is_set(const struct event_set *set) { return set && set->magic == SET_MAGIC; }

API nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    CALL();
    NEED(set);
    *set = calloc(1, sizeof **set);
    if (!*set) return NVML_ERROR_MEMORY;
    (*set)->magic = SET_MAGIC;
    (*set)->next = __atomic_load_n(&state->event_count, __ATOMIC_ACQUIRE);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    CALL();
    NEED(is_set(set));
    set->magic = 0;
    free(set);
    return NVML_SUCCESS;
}

/* Recorded on Hopper: all that nvml.h names. An assumption elsewhere: ECC errors, P-state, critical XID, change of the
 * MIG configuration. */
static unsigned long long supported_events(nvmlDevice_t device) {
    return fixed_of(device)->architecture == ARCHITECTURE_HOPPER ? 0xFF9Full : 0x10Full;
}

API nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    GPU_CALL(device, types);
    *types = supported_events(device);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    CALL();
    TRY(check_device(device, 0));
    NEED(is_set(set));
    if (types & ~supported_events(device)) return NVML_ERROR_NOT_SUPPORTED;
    set->types[device->gpu] |= types;
    return NVML_SUCCESS;
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

/* The next event that the set asked for, if there is one. */
static int take(struct event_set *set, uint32_t count, struct event *event) {
    if (count - set->next > MAX_EVENTS) set->next = count - MAX_EVENTS; /* older ones were overwritten */
    while (set->next != count) {
        *event = state->events[set->next++ % MAX_EVENTS];
        if (event->gpu < MAX_GPUS && set->types[event->gpu] & event->type) return 1;
    }
    return 0;
}

API nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout_ms) {
    struct event event;
    CALL();
    NEED(is_set(set) && data);
    long long end = now_ms() + timeout_ms;
    for (;;) {
        uint32_t count = __atomic_load_n(&state->event_count, __ATOMIC_ACQUIRE);
        if (take(set, count, &event)) {
            *data = (nvmlEventData_t){&gpu_handles[event.gpu], event.type, event.data, event.gpu_instance,
                                      event.compute_instance};
            return NVML_SUCCESS;
        }
        long long left = end - now_ms();
        if (left <= 0) return NVML_ERROR_TIMEOUT;
        if (left > LONGEST_SLEEP_MS) left = LONGEST_SLEEP_MS;
        struct timespec sleep = {left / 1000, left % 1000 * 1000000};
        if (syscall(SYS_futex, &state->event_count, FUTEX_WAIT, count, &sleep, NULL, 0) && errno != ETIMEDOUT &&
            errno != EAGAIN && errno != EINTR)
            nanosleep(&sleep, NULL);
    }
}

API nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_v1_t *data, unsigned timeout_ms) {
    nvmlEventData_t second;
    NEED(data);
    TRY(nvmlEventSetWait_v2(set, &second, timeout_ms));
    *data = (nvmlEventData_v1_t){second.device, second.type, second.data};
    return NVML_SUCCESS;
}
