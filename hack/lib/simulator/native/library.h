/* What the calls share: handles, entry checks. */
#ifndef LIBRARY_H
#define LIBRARY_H

#include <string.h>

#include "nvml_abi.h"
#include "state.h"

#define API __attribute__((visibility("default")))
#define WHOLE_GPU 0xFFFFFFFFu

enum { ARCHITECTURE_HOPPER = 9 }; /* nvml.h NVML_DEVICE_ARCH_HOPPER */

enum kind { KIND_GPU = 1, KIND_MIG_DEVICE, KIND_GPU_INSTANCE, KIND_COMPUTE_INSTANCE };

struct handle {
    uint8_t kind, gpu, gi, ci;
};

extern struct handle gpu_handles[MAX_GPUS];
extern struct handle mig_handles[MAX_GPUS][MAX_GPU_INSTANCES][MAX_COMPUTE_INSTANCES];
extern struct handle gi_handles[MAX_GPUS][MAX_GPU_INSTANCES];
extern struct handle ci_handles[MAX_GPUS][MAX_GPU_INSTANCES][MAX_COMPUTE_INSTANCES];
extern uint32_t visible_gpus[MAX_GPUS], visible_gpu_count;

/* UNINITIALIZED before nvmlInit, else what a fault on this function says. */
int call_begin(const char *function);

int is_handle(const struct handle *handle, enum kind kind);

/* INVALID_ARGUMENT or GPU_IS_LOST; `mig_too`: a MIG device handle is welcome. */
int check_device(const struct handle *device, int mig_too);

/* The instances of this handle, or NOT_FOUND when it was destroyed since. */
int check_instance(const struct handle *handle, struct changing *now);

/* A look at one number of what changes now; for several that belong together, state_read. */
static inline const struct changing *current(const struct handle *device) {
    const struct gpu *gpu = &state->gpus[device->gpu];
    return &gpu->slots[__atomic_load_n(&gpu->generation, __ATOMIC_ACQUIRE) & 1];
}

static inline const struct fixed *fixed_of(const struct handle *handle) { return &state->gpus[handle->gpu].fixed; }

#define TRY(expression)                            \
    do {                                           \
        int result_ = (expression);                \
        if (result_ != NVML_SUCCESS) return result_; \
    } while (0)

#define CALL() TRY(call_begin(__func__))
#define NEED(condition)                                        \
    do {                                                       \
        if (!(condition)) return NVML_ERROR_INVALID_ARGUMENT;  \
    } while (0)

/* Start of a call on a whole GPU, and of one on a GPU or MIG device. */
#define GPU_CALL(device, argument)     \
    CALL();                            \
    TRY(check_device(device, 0));      \
    NEED((argument) != NULL)
#define DEVICE_CALL(device, argument)  \
    CALL();                            \
    TRY(check_device(device, 1));      \
    NEED((argument) != NULL)

/* Copies text into a caller's buffer of `length` bytes. */
int give_text(char *buffer, unsigned length, const char *text);

#endif
