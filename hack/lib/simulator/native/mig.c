/* MIG: mode, profiles, placements, GPU instances. Rules: every resource that the hardware partitions is counted. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "library.h"
#include "mig.h"

enum { MIG_OFF = 0, MIG_ON = 1 };

API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    GPU_CALL(device, current);
    NEED(pending);
    if (!fixed_of(device)->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    struct changing now;
    state_read(device->gpu, &now);
    *current = now.mig_current;
    *pending = now.mig_pending;
    return NVML_SUCCESS;
}

static int has_instances(const struct changing *now) {
    for (int gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        if (now->instances[gi].used) return 1;
    return 0;
}

/* The call can succeed while `activation` says that the mode is not in force yet. */
API nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned mode, nvmlReturn_t *activation) {
    GPU_CALL(device, activation);
    NEED(mode == MIG_OFF || mode == MIG_ON);
    if (!fixed_of(device)->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    struct change change;
    TRY(change_begin(&change, device->gpu));
    struct changing *next = change.next;
    if (mode == MIG_OFF && has_instances(next)) {
        change_abort(&change);
        return NVML_ERROR_IN_USE;
    }
    *activation = NVML_SUCCESS;
    next->mig_pending = mode;
    if (mode != next->mig_current) {
        if (next->process_count)
            *activation = NVML_ERROR_IN_USE;
        else if (fixed_of(device)->mode_change_needs_reset)
            *activation = NVML_ERROR_RESET_REQUIRED;
        else
            next->mig_current = mode;
    }
    change_commit(&change);
    return NVML_SUCCESS;
}

const struct profile *profile_by_id(const struct fixed *fixed, unsigned id) {
    for (uint32_t i = 0; i < fixed->profile_count; i++)
        if (fixed->profiles[i].id == id) return &fixed->profiles[i];
    return NULL;
}

static const struct profile *profile_by_slot(const struct fixed *fixed, unsigned slot) {
    for (uint32_t i = 0; i < fixed->profile_count; i++)
        if (fixed->profiles[i].slot == slot) return &fixed->profiles[i];
    return NULL;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned slot,
                                                     nvmlGpuInstanceProfileInfo_t *info) {
    GPU_CALL(device, info);
    NEED(slot < GPU_INSTANCE_PROFILE_COUNT);
    const struct profile *p = profile_by_slot(fixed_of(device), slot);
    if (!p) return NVML_ERROR_NOT_SUPPORTED;
    *info = (nvmlGpuInstanceProfileInfo_t){
        .id = p->id, .p2p = p->capabilities & 1, .slices = p->slices, .instances = p->max_instances,
        .multiprocessors = p->multiprocessors, .copy_engines = p->copy_engines, .decoders = p->decoders,
        .encoders = p->encoders, .jpeg_engines = p->jpeg_engines, .ofa_engines = p->ofa_engines,
        .memory_mib = p->memory_mib};
    return NVML_SUCCESS;
}

static int give_profile(const struct profile *p, void *info) {
    unsigned version = *(unsigned *)info;
    if (version == NVML_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2)) {
        nvmlGpuInstanceProfileInfo_v2_t *v2 = info;
        *v2 = (nvmlGpuInstanceProfileInfo_v2_t){
            .version = version, .id = p->id, .p2p = p->capabilities & 1, .slices = p->slices,
            .instances = p->max_instances, .multiprocessors = p->multiprocessors, .copy_engines = p->copy_engines,
            .decoders = p->decoders, .encoders = p->encoders, .jpeg_engines = p->jpeg_engines,
            .ofa_engines = p->ofa_engines, .memory_mib = p->memory_mib};
        snprintf(v2->name, sizeof v2->name, "MIG %s", p->name);
        return NVML_SUCCESS;
    }
    if (version == NVML_VERSION(nvmlGpuInstanceProfileInfo_v3_t, 3)) {
        nvmlGpuInstanceProfileInfo_v3_t *v3 = info;
        *v3 = (nvmlGpuInstanceProfileInfo_v3_t){
            .version = version, .id = p->id, .slices = p->slices, .instances = p->max_instances,
            .multiprocessors = p->multiprocessors, .copy_engines = p->copy_engines, .decoders = p->decoders,
            .encoders = p->encoders, .jpeg_engines = p->jpeg_engines, .ofa_engines = p->ofa_engines,
            .memory_mib = p->memory_mib, .capabilities = p->capabilities};
        snprintf(v3->name, sizeof v3->name, "MIG %s", p->name);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned slot, void *info) {
    GPU_CALL(device, info);
    NEED(slot < GPU_INSTANCE_PROFILE_COUNT);
    const struct profile *p = profile_by_slot(fixed_of(device), slot);
    return p ? give_profile(p, info) : NVML_ERROR_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlDevice_t device, unsigned id, void *info) {
    GPU_CALL(device, info);
    const struct profile *p = profile_by_id(fixed_of(device), id);
    return p ? give_profile(p, info) : NVML_ERROR_NOT_SUPPORTED;
}

/* With no array: the count alone. */
API nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned id,
                                                               nvmlGpuInstancePlacement_t *placements,
                                                               unsigned *count) {
    GPU_CALL(device, count);
    if (!fixed_of(device)->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    const struct profile *p = profile_by_id(fixed_of(device), id);
    NEED(p);
    if (placements) {
        if (*count < p->start_count) return NVML_ERROR_INSUFFICIENT_SIZE;
        for (uint32_t i = 0; i < p->start_count; i++)
            placements[i] = (nvmlGpuInstancePlacement_t){p->starts[i], p->size};
    }
    *count = p->start_count;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned id,
                                                            nvmlGpuInstancePlacement_t *placements, unsigned *count)
    __attribute__((alias("nvmlDeviceGetGpuInstancePossiblePlacements_v2")));

/* Ids follow the placement: 0 for the whole GPU, then 1, 2 for its halves, 3.. for quarters, 7.. for eighths. */
static uint32_t instance_id(const struct fixed *fixed, const struct profile *p, uint32_t start) {
    return fixed->memory_slices / p->size - 1 + start / p->size;
}

static int engines_left(const struct fixed *fixed, const struct changing *now, const struct profile *p) {
    uint32_t sms = p->multiprocessors, copy = p->copy_engines, dec = p->decoders, enc = p->encoders,
             jpeg = p->jpeg_engines, ofa = p->ofa_engines, same = 1;
    for (int gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
        if (!now->instances[gi].used) continue;
        const struct profile *other = &fixed->profiles[now->instances[gi].profile];
        sms += other->multiprocessors;
        copy += other->copy_engines;
        dec += other->decoders;
        enc += other->encoders;
        jpeg += other->jpeg_engines;
        ofa += other->ofa_engines;
        same += other == p;
    }
    return sms <= fixed->multiprocessors && copy <= fixed->copy_engines && dec <= fixed->decoders &&
           enc <= fixed->encoders && jpeg <= fixed->jpeg_engines && ofa <= fixed->ofa_engines &&
           same <= p->max_instances;
}

static int placement_free(const struct fixed *fixed, const struct changing *now, uint32_t start, uint32_t size) {
    for (int gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
        const struct gpu_instance *other = &now->instances[gi];
        if (!other->used) continue;
        uint32_t other_size = fixed->profiles[other->profile].size;
        if (start < other->start + other_size && other->start < start + size) return 0;
    }
    return 1;
}

static uint32_t free_placements(const struct fixed *fixed, const struct changing *now, const struct profile *p) {
    uint32_t count = 0, end = 0;
    if (!engines_left(fixed, now, p)) return 0;
    for (uint32_t i = 0; i < p->start_count; i++)
        if ((!count || p->starts[i] >= end) && placement_free(fixed, now, p->starts[i], p->size)) {
            count++;
            end = p->starts[i] + p->size;
        }
    return count;
}

/* Like the list of instances, this does not depend on MIG mode (field IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE). */
API nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned id, unsigned *count) {
    GPU_CALL(device, count);
    const struct fixed *fixed = fixed_of(device);
    if (!fixed->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    struct changing now;
    state_read(device->gpu, &now);
    const struct profile *p = profile_by_id(fixed, id);
    NEED(p);
    uint32_t used = 0;
    for (int gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        used += now.instances[gi].used && &fixed->profiles[now.instances[gi].profile] == p;
    uint32_t room = free_placements(fixed, &now, p);
    *count = room < p->max_instances - used ? room : p->max_instances - used;
    return NVML_SUCCESS;
}

static int create(nvmlDevice_t device, unsigned id, const nvmlGpuInstancePlacement_t *wanted,
                  nvmlGpuInstance_t *created) {
    const struct fixed *fixed = fixed_of(device);
    struct change change;
    int result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    if (!fixed->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    const struct profile *p = profile_by_id(fixed, id);
    TRY(change_begin(&change, device->gpu));
    if (change.next->mig_current != MIG_ON)
        result = NVML_ERROR_NOT_SUPPORTED;
    else if (!p || (wanted && wanted->size != p->size))
        result = NVML_ERROR_INVALID_ARGUMENT;
    else {
        int legal = !wanted;
        for (uint32_t i = 0; i < p->start_count && result == NVML_ERROR_INSUFFICIENT_RESOURCES; i++) {
            uint32_t start = p->preferred[i];
            if (wanted && wanted->start != start) continue;
            legal = 1;
            if (!placement_free(fixed, change.next, start, p->size) || !engines_left(fixed, change.next, p)) continue;
            uint32_t gi = instance_id(fixed, p, start);
            memset(&change.next->instances[gi], 0, sizeof change.next->instances[gi]);
            change.next->instances[gi].used = 1;
            change.next->instances[gi].profile = (uint32_t)(p - fixed->profiles);
            change.next->instances[gi].start = start;
            *created = &gi_handles[device->gpu][gi];
            result = NVML_SUCCESS;
        }
        if (!legal) result = NVML_ERROR_INVALID_ARGUMENT;
    }
    if (result)
        change_abort(&change);
    else
        change_commit(&change);
    return result;
}

API nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance) {
    GPU_CALL(device, instance);
    return create(device, id, NULL, instance);
}

API nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned id,
                                                          const nvmlGpuInstancePlacement_t *placement,
                                                          nvmlGpuInstance_t *instance) {
    GPU_CALL(device, instance);
    NEED(placement);
    return create(device, id, placement, instance);
}

API nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance) {
    CALL();
    NEED(is_handle(instance, KIND_GPU_INSTANCE));
    struct change change;
    TRY(change_begin(&change, instance->gpu));
    struct gpu_instance *found = &change.next->instances[instance->gi];
    int result = change.next->lost ? NVML_ERROR_GPU_IS_LOST : found->used ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
    for (int ci = 0; ci < MAX_COMPUTE_INSTANCES && !result; ci++)
        if (found->compute[ci].used) result = NVML_ERROR_IN_USE;
    if (!result && instance_in_use(change.next, instance->gi, WHOLE_GPU)) result = NVML_ERROR_IN_USE;
    if (result) {
        change_abort(&change);
        return result;
    }
    memset(found, 0, sizeof *found);
    change_commit(&change);
    return NVML_SUCCESS;
}

int instance_in_use(const struct changing *now, uint32_t gi, uint32_t ci) {
    for (uint32_t i = 0; i < now->process_count; i++) {
        const struct process *process = &now->processes[i];
        if (process->gpu_instance == gi && (ci == WHOLE_GPU || process->compute_instance == WHOLE_GPU ||
                                            process->compute_instance == ci))
            return 1;
    }
    return 0;
}

API nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instances,
                                           unsigned *count) {
    GPU_CALL(device, count);
    NEED(instances);
    if (!fixed_of(device)->mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    const struct profile *p = profile_by_id(fixed_of(device), id);
    struct changing now;
    state_read(device->gpu, &now);
    NEED(p);
    *count = 0;
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        if (now.instances[gi].used && &fixed_of(device)->profiles[now.instances[gi].profile] == p)
            instances[(*count)++] = &gi_handles[device->gpu][gi];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance) {
    GPU_CALL(device, instance);
    struct changing now;
    state_read(device->gpu, &now);
    if (now.mig_current != MIG_ON) return NVML_ERROR_NOT_SUPPORTED;
    if (id >= MAX_GPU_INSTANCES || !now.instances[id].used || !state_instance_visible(device->gpu, id, -1))
        return NVML_ERROR_NOT_FOUND;
    *instance = &gi_handles[device->gpu][id];
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, nvmlGpuInstanceInfo_t *info) {
    CALL();
    NEED(is_handle(instance, KIND_GPU_INSTANCE) && info);
    struct changing now;
    TRY(check_instance(instance, &now));
    const struct gpu_instance *found = &now.instances[instance->gi];
    const struct profile *p = &fixed_of(instance)->profiles[found->profile];
    *info = (nvmlGpuInstanceInfo_t){&gpu_handles[instance->gpu], instance->gi, p->id, {found->start, p->size}};
    return NVML_SUCCESS;
}
