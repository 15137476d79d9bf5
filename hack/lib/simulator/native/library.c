/* Life of the library in a process: initialisation, handles, errors, what the system says. */
#define _GNU_SOURCE
#include "library.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

struct handle gpu_handles[MAX_GPUS];
struct handle mig_handles[MAX_GPUS][MAX_GPU_INSTANCES][MAX_COMPUTE_INSTANCES];
struct handle gi_handles[MAX_GPUS][MAX_GPU_INSTANCES];
struct handle ci_handles[MAX_GPUS][MAX_GPU_INSTANCES][MAX_COMPUTE_INSTANCES];
uint32_t visible_gpus[MAX_GPUS], visible_gpu_count;

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static int references;

enum { INIT_NO_GPUS = 1 }; /* nvml.h NVML_INIT_FLAG_NO_GPUS: none is no reason to fail */

static void fill_handles(void) {
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        gpu_handles[gpu] = (struct handle){KIND_GPU, (uint8_t)gpu, 0, 0};
        for (int gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
            gi_handles[gpu][gi] = (struct handle){KIND_GPU_INSTANCE, (uint8_t)gpu, (uint8_t)gi, 0};
            for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
                mig_handles[gpu][gi][ci] = (struct handle){KIND_MIG_DEVICE, (uint8_t)gpu, (uint8_t)gi, (uint8_t)ci};
                ci_handles[gpu][gi][ci] = (struct handle){KIND_COMPUTE_INSTANCE, (uint8_t)gpu, (uint8_t)gi, (uint8_t)ci};
            }
        }
    }
}

API nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    pthread_mutex_lock(&init_lock);
    int result = NVML_SUCCESS;
    if (!references) {
        result = state_open();
        if (!result) {
            fill_handles();
            visible_gpu_count = 0;
            for (uint32_t gpu = 0; gpu < state->gpu_count; gpu++)
                if (state_gpu_visible(gpu)) visible_gpus[visible_gpu_count++] = gpu;
            if (!state_driver_visible())
                result = NVML_ERROR_DRIVER_NOT_LOADED;
            else if (!visible_gpu_count && !(flags & INIT_NO_GPUS))
                result = NVML_ERROR_GPU_NOT_FOUND;
        }
    }
    if (!result) result = faults_check("nvmlInit");
    if (!result) references++;
    pthread_mutex_unlock(&init_lock);
    return result;
}

API nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API nvmlReturn_t nvmlInit(void) __attribute__((alias("nvmlInit_v2")));

API nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&init_lock);
    int result = references ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (references) references--;
    pthread_mutex_unlock(&init_lock);
    return result; /* the mapping stays: another thread may still be inside a call */
}

int call_begin(const char *function) {
    if (!__atomic_load_n(&references, __ATOMIC_ACQUIRE)) return NVML_ERROR_UNINITIALIZED;
    return faults_check(function);
}

static int inside(const void *handle, const void *table, size_t size) {
    uintptr_t offset = (uintptr_t)handle - (uintptr_t)table;
    return (uintptr_t)handle >= (uintptr_t)table && offset < size && offset % sizeof(struct handle) == 0;
}

int is_handle(const struct handle *handle, enum kind kind) {
    int known = inside(handle, gpu_handles, sizeof gpu_handles) || inside(handle, mig_handles, sizeof mig_handles) ||
                inside(handle, gi_handles, sizeof gi_handles) || inside(handle, ci_handles, sizeof ci_handles);
    return known && handle->kind == kind && handle->gpu < state->gpu_count;
}

int check_device(const struct handle *device, int mig_too) {
    if (!is_handle(device, KIND_GPU) && !is_handle(device, KIND_MIG_DEVICE)) return NVML_ERROR_INVALID_ARGUMENT;
    const struct gpu *gpu = &state->gpus[device->gpu];
    const struct changing *now = &gpu->slots[gpu->generation & 1];
    if (now->lost || now->absent) return NVML_ERROR_GPU_IS_LOST;
    if (device->kind == KIND_MIG_DEVICE) {
        if (!mig_too) return NVML_ERROR_INVALID_ARGUMENT;
        const struct gpu_instance *instance = &now->instances[device->gi];
        if (!instance->used || !instance->compute[device->ci].used) return NVML_ERROR_NOT_FOUND;
    }
    return NVML_SUCCESS;
}

int check_instance(const struct handle *handle, struct changing *now) {
    state_read(handle->gpu, now);
    if (now->lost || now->absent) return NVML_ERROR_GPU_IS_LOST;
    const struct gpu_instance *instance = &now->instances[handle->gi];
    if (!instance->used) return NVML_ERROR_NOT_FOUND;
    if (handle->kind != KIND_GPU_INSTANCE && !instance->compute[handle->ci].used) return NVML_ERROR_NOT_FOUND;
    return NVML_SUCCESS;
}

int give_text(char *buffer, unsigned length, const char *text) {
    if (!buffer) return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) + 1 > length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    CALL();
    return give_text(version, length, state->driver_version);
}

API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    char text[48];
    CALL();
    snprintf(text, sizeof text, "%u.%s", state->cuda_version / 1000, state->driver_version);
    return give_text(version, length, text);
}

API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    CALL();
    NEED(version);
    *version = (int)state->cuda_version;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
    __attribute__((alias("nvmlSystemGetCudaDriverVersion_v2")));

struct driver_branch {
    unsigned version;
    char branch[80];
};

API nvmlReturn_t nvmlSystemGetDriverBranch(struct driver_branch *info, unsigned length) {
    CALL();
    NEED(info && length);
    if (info->version != NVML_VERSION(struct driver_branch, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    snprintf(info->branch, sizeof info->branch, "r%.3s_00", state->driver_version);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    char path[40], text[256];
    CALL();
    NEED(name && length);
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_NOT_FOUND;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got < 0 ? 0 : got] = 0;
    snprintf(name, length, "%s", text);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlSystemGetConfComputeState(unsigned *four) {
    CALL();
    NEED(four);
    memset(four, 0, 3 * sizeof *four); /* environment, feature, developer tools: all off */
    return NVML_SUCCESS;
}

API const char *nvmlErrorString(nvmlReturn_t code) {
    static const char *const texts[] = {
        "Success",
        "Uninitialized",
        "Invalid Argument",
        "Not Supported",
        "Insufficient Permissions",
        "Already Initialized",
        "Not Found",
        "Insufficient Size",
        "Insufficient External Power",
        "Driver Not Loaded",
        "Timeout",
        "Interrupt Request Issue",
        "NVML Shared Library Not Found",
        "Function Not Found",
        "Corrupted infoROM",
        "GPU is lost",
        "GPU requires reset",
        "Operating System Error",
        "Driver/library version mismatch",
        "In use by another client",
        "Out of memory",
        "No data",
        "ECC is not supported for vGPU",
        "Insufficient Resources",
        "Requested frequency is not supported",
        "Argument version mismatch",
        "Deprecated",
        "Not Ready",
        "GPU Not Found",
        "Invalid State",
        "Reset type not supported",
    };
    if (code < 0 || code >= (int)(sizeof texts / sizeof *texts)) return "Unknown Error";
    return texts[code];
}
