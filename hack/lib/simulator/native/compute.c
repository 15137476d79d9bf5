/* Compute instances, and the MIG devices that they are to CUDA. */
#include <stdio.h>
#include <sys/random.h>

#include "library.h"
#include "mig.h"

/* Slices of each NVML_COMPUTE_INSTANCE_PROFILE_*; 0: offered by no simulated GPU. Their ids equal these indices. */
static const uint32_t PROFILE_SLICES[COMPUTE_INSTANCE_PROFILE_COUNT] = {1, 2, 3, 4, 7, 8, 6, 1, 0};
enum { ONE_SLICE_REV1 = 7 }; /* one slice with all the multiprocessors of a 1g that has double memory */

/* Multiprocessors of the plain 1g. */
static uint32_t slice_multiprocessors(const struct fixed *fixed, const struct profile *p) {
    uint32_t least = p->multiprocessors;
    for (uint32_t i = 0; i < fixed->profile_count; i++)
        if (fixed->profiles[i].slices == 1 && fixed->profiles[i].multiprocessors < least)
            least = fixed->profiles[i].multiprocessors;
    return least;
}

static int offered(const struct fixed *fixed, const struct profile *p, unsigned profile) {
    if (profile >= COMPUTE_INSTANCE_PROFILE_COUNT) return 0;
    uint32_t slices = PROFILE_SLICES[profile];
    if (!slices || slices > p->slices) return 0;
    if (profile == ONE_SLICE_REV1) return p->slices == 1 && p->multiprocessors > slice_multiprocessors(fixed, p);
    return slices != 3 || p->slices != 4; /* 4g offers 1c, 2c and 4c */
}

uint32_t compute_multiprocessors(const struct fixed *fixed, const struct profile *p, uint32_t profile) {
    uint32_t slices = PROFILE_SLICES[profile];
    if (profile == ONE_SLICE_REV1 || (slices > 1 && slices == p->slices)) return p->multiprocessors;
    return slices * slice_multiprocessors(fixed, p);
}

void name_compute_instance(const struct profile *p, uint32_t slices, char *name, unsigned length) {
    if (slices == p->slices)
        snprintf(name, length, "%s", p->name);
    else
        snprintf(name, length, "%uc.%s", slices, p->name);
}

static int profile_of(nvmlGpuInstance_t instance, unsigned profile, unsigned engines, struct changing *now,
                      const struct profile **p) {
    NEED(is_handle(instance, KIND_GPU_INSTANCE));
    NEED(profile < COMPUTE_INSTANCE_PROFILE_COUNT && engines < COMPUTE_ENGINE_PROFILE_COUNT);
    TRY(check_instance(instance, now));
    *p = &fixed_of(instance)->profiles[now->instances[instance->gi].profile];
    return offered(fixed_of(instance), *p, profile) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t instance, unsigned profile,
                                                              unsigned engines,
                                                              nvmlComputeInstanceProfileInfo_t *info) {
    struct changing now;
    const struct profile *p;
    CALL();
    NEED(info);
    TRY(profile_of(instance, profile, engines, &now, &p));
    uint32_t slices = PROFILE_SLICES[profile];
    *info = (nvmlComputeInstanceProfileInfo_t){
        profile, slices, p->slices / slices, compute_multiprocessors(fixed_of(instance), p, profile), p->copy_engines,
        p->decoders, p->encoders, p->jpeg_engines, p->ofa_engines};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t instance, unsigned profile,
                                                               unsigned engines, void *info) {
    struct changing now;
    const struct profile *p;
    CALL();
    NEED(info);
    TRY(profile_of(instance, profile, engines, &now, &p));
    unsigned version = *(unsigned *)info;
    int third = version == NVML_VERSION(nvmlComputeInstanceProfileInfo_v3_t, 3);
    if (!third && version != NVML_VERSION(nvmlComputeInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    uint32_t slices = PROFILE_SLICES[profile];
    nvmlComputeInstanceProfileInfo_v2_t *v2 = info; /* version 3 only appends */
    *v2 = (nvmlComputeInstanceProfileInfo_v2_t){
        version, profile, slices, p->slices / slices, compute_multiprocessors(fixed_of(instance), p, profile),
        p->copy_engines, p->decoders, p->encoders, p->jpeg_engines, p->ofa_engines, ""};
    strcpy(v2->name, "MIG ");
    name_compute_instance(p, slices, v2->name + 4, sizeof v2->name - 4);
    if (third) ((nvmlComputeInstanceProfileInfo_v3_t *)info)->capabilities = p->capabilities >> 1;
    return NVML_SUCCESS;
}

static int span_free(const struct gpu_instance *instance, uint32_t start, uint32_t slices) {
    for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
        const struct compute_instance *other = &instance->compute[ci];
        if (other->used && start < other->start + other->slices && other->start < start + slices) return 0;
    }
    return 1;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t instance, unsigned profile,
                                                                    unsigned *count) {
    struct changing now;
    const struct profile *p;
    CALL();
    NEED(count);
    TRY(profile_of(instance, profile, 0, &now, &p));
    uint32_t slices = PROFILE_SLICES[profile];
    *count = 0;
    for (uint32_t start = 0; start + slices <= p->slices; start += slices)
        *count += span_free(&now.instances[instance->gi], start, slices);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t instance, unsigned profile,
                                                                     nvmlGpuInstancePlacement_t *placements,
                                                                     unsigned *count) {
    struct changing now;
    const struct profile *p;
    CALL();
    NEED(count);
    TRY(profile_of(instance, profile, 0, &now, &p));
    uint32_t slices = PROFILE_SLICES[profile], possible = p->slices / slices;
    if (placements) {
        if (*count < possible) return NVML_ERROR_INSUFFICIENT_SIZE;
        for (uint32_t i = 0; i < possible; i++) placements[i] = (nvmlGpuInstancePlacement_t){i * slices, slices};
    }
    *count = possible;
    return NVML_SUCCESS;
}

static void new_uuid(char *text, unsigned length) {
    unsigned char b[16] = {0};
    ssize_t got = getrandom(b, sizeof b, 0);
    (void)got;
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x50);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    snprintf(text, length, "MIG-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static int place(struct gpu_instance *instance, const struct profile *p, unsigned profile,
                 const nvmlGpuInstancePlacement_t *wanted) {
    uint32_t slices = PROFILE_SLICES[profile];
    for (uint32_t start = 0; start + slices <= p->slices; start += slices) {
        if ((wanted && wanted->start != start) || !span_free(instance, start, slices)) continue;
        for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
            struct compute_instance *compute = &instance->compute[ci];
            if (compute->used) continue;
            *compute = (struct compute_instance){1, slices, start, profile, ""};
            new_uuid(compute->uuid, sizeof compute->uuid);
            return ci;
        }
    }
    return -1;
}

static int create(nvmlGpuInstance_t instance, unsigned profile, const nvmlGpuInstancePlacement_t *wanted,
                  nvmlComputeInstance_t *created) {
    struct change change;
    NEED(is_handle(instance, KIND_GPU_INSTANCE) && created);
    NEED(profile < COMPUTE_INSTANCE_PROFILE_COUNT);
    TRY(change_begin(&change, instance->gpu));
    struct gpu_instance *parent = &change.next->instances[instance->gi];
    const struct profile *p = &fixed_of(instance)->profiles[parent->profile];
    int result = NVML_SUCCESS, ci = -1;
    if (change.next->lost)
        result = NVML_ERROR_GPU_IS_LOST;
    else if (!parent->used)
        result = NVML_ERROR_NOT_FOUND;
    else if (!offered(fixed_of(instance), p, profile))
        result = NVML_ERROR_NOT_SUPPORTED;
    else if (wanted && (wanted->size != PROFILE_SLICES[profile] || wanted->start % wanted->size ||
                        wanted->start + wanted->size > p->slices))
        result = NVML_ERROR_INVALID_ARGUMENT;
    else if ((ci = place(parent, p, profile, wanted)) < 0)
        result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    if (result) {
        change_abort(&change);
        return result;
    }
    change_commit(&change);
    *created = &ci_handles[instance->gpu][instance->gi][ci];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance, unsigned profile,
                                                      nvmlComputeInstance_t *created) {
    CALL();
    return create(instance, profile, NULL, created);
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvmlGpuInstance_t instance, unsigned profile,
                                                                   const nvmlGpuInstancePlacement_t *placement,
                                                                   nvmlComputeInstance_t *created) {
    CALL();
    NEED(placement);
    return create(instance, profile, placement, created);
}

API nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t instance) {
    struct change change;
    CALL();
    NEED(is_handle(instance, KIND_COMPUTE_INSTANCE));
    TRY(change_begin(&change, instance->gpu));
    struct gpu_instance *parent = &change.next->instances[instance->gi];
    struct compute_instance *found = &parent->compute[instance->ci];
    int result = NVML_SUCCESS;
    if (change.next->lost)
        result = NVML_ERROR_GPU_IS_LOST;
    else if (!parent->used || !found->used)
        result = NVML_ERROR_NOT_FOUND;
    else if (instance_in_use(change.next, instance->gi, instance->ci))
        result = NVML_ERROR_IN_USE;
    if (result) {
        change_abort(&change);
        return result;
    }
    memset(found, 0, sizeof *found);
    change_commit(&change);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance, unsigned profile,
                                                    nvmlComputeInstance_t *instances, unsigned *count) {
    struct changing now;
    CALL();
    NEED(is_handle(instance, KIND_GPU_INSTANCE) && instances && count);
    TRY(check_instance(instance, &now));
    *count = 0;
    for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
        const struct compute_instance *found = &now.instances[instance->gi].compute[ci];
        if (found->used && found->profile_id == profile)
            instances[(*count)++] = &ci_handles[instance->gpu][instance->gi][ci];
    }
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance, unsigned id,
                                                       nvmlComputeInstance_t *found) {
    struct changing now;
    CALL();
    NEED(is_handle(instance, KIND_GPU_INSTANCE) && found);
    TRY(check_instance(instance, &now));
    if (id >= MAX_COMPUTE_INSTANCES || !now.instances[instance->gi].compute[id].used) return NVML_ERROR_NOT_FOUND;
    *found = &ci_handles[instance->gpu][instance->gi][id];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t instance, nvmlComputeInstanceInfo_t *info) {
    struct changing now;
    CALL();
    NEED(is_handle(instance, KIND_COMPUTE_INSTANCE) && info);
    TRY(check_instance(instance, &now));
    const struct compute_instance *found = &now.instances[instance->gi].compute[instance->ci];
    *info = (nvmlComputeInstanceInfo_t){&mig_handles[instance->gpu][instance->gi][instance->ci],
                                        &gi_handles[instance->gpu][instance->gi],
                                        instance->ci,
                                        found->profile_id,
                                        {found->start, found->slices}};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlComputeInstanceGetInfo(nvmlComputeInstance_t instance, nvmlComputeInstanceInfo_v1_t *info) {
    nvmlComputeInstanceInfo_t second;
    NEED(info);
    TRY(nvmlComputeInstanceGetInfo_v2(instance, &second));
    *info = (nvmlComputeInstanceInfo_v1_t){second.device, second.gpu_instance, second.id, second.profile_id};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
    struct changing now;
    GPU_CALL(device, count);
    state_read(device->gpu, &now);
    *count = now.mig_current ? fixed_of(device)->max_mig_devices : 0;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found) {
    struct changing now;
    GPU_CALL(device, found);
    state_read(device->gpu, &now);
    if (!now.mig_current) return NVML_ERROR_NOT_FOUND;
    NEED(index < fixed_of(device)->max_mig_devices);
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        for (int ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
            if (!now.instances[gi].used || !now.instances[gi].compute[ci].used) continue;
            if (!state_instance_visible(device->gpu, gi, ci) || index--) continue;
            *found = &mig_handles[device->gpu][gi][ci];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_mig) {
    DEVICE_CALL(device, is_mig);
    *is_mig = device->kind == KIND_MIG_DEVICE;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *parent) {
    DEVICE_CALL(device, parent);
    NEED(device->kind == KIND_MIG_DEVICE);
    *parent = &gpu_handles[device->gpu];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id) {
    DEVICE_CALL(device, id);
    if (device->kind != KIND_MIG_DEVICE) return NVML_ERROR_NOT_SUPPORTED;
    *id = device->gi;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id) {
    DEVICE_CALL(device, id);
    if (device->kind != KIND_MIG_DEVICE) return NVML_ERROR_NOT_SUPPORTED;
    *id = device->ci;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    struct changing now;
    DEVICE_CALL(device, attributes);
    const struct fixed *fixed = fixed_of(device);
    if (device->kind != KIND_MIG_DEVICE) return NVML_ERROR_NOT_SUPPORTED;
    TRY(check_instance(device, &now));
    const struct gpu_instance *instance = &now.instances[device->gi];
    const struct profile *p = &fixed->profiles[instance->profile];
    const struct compute_instance *compute = &instance->compute[device->ci];
    *attributes = (nvmlDeviceAttributes_t){
        compute_multiprocessors(fixed, p, compute->profile_id), p->copy_engines, p->decoders, p->encoders, p->jpeg_engines,
        p->ofa_engines, p->slices, compute->slices, p->memory_mib};
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
    __attribute__((alias("nvmlDeviceGetAttributes_v2")));
