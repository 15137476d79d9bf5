/* The part of AMD SMI 7.0 that says what the GPUs are and partitions them; layouts as amdsmi_wrapper.py declares them.
 * Everything else that the Python package binds answers AMDSMI_STATUS_NOT_SUPPORTED (see unsupported.h). */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default"))) uint32_t

/* amdsmi_status_t */
enum {
    SUCCESS = 0,
    INVAL = 1,
    NOT_SUPPORTED = 2,
    NO_PERM = 10,
    IO = 12,
    INPUT_OUT_OF_BOUNDS = 17,
    BUSY = 30,
    NOT_FOUND = 31,
    NOT_INIT = 32,
    DRIVER_NOT_LOADED = 34,
    INSUFFICIENT_SIZE = 41,
    ARG_PTR_NULL = 53,
    AMDGPU_RESTART_ERR = 54,
    SETTING_UNAVAILABLE = 55,
};
enum { LINK_INTERNAL, LINK_PCIE, LINK_XGMI };
enum { TYPE_AMD_GPU = 1, VRAM_HBM3 = 4, VIRTUALIZATION_BAREMETAL = 1 };

typedef void *handle;

static int users;              /* nested amdsmi_init calls */
static uint64_t topology;      /* of the enumeration that this process's handles come from */
static int kept_handles;       /* a compute change leaves DRM handles open until amdsmi_shut_down */

/* Handles carry what they name, so that one of an older topology is recognised. */
#define HANDLE_TAG 0x414dull
static handle make_handle(uint32_t is_socket, uint32_t gpu, uint32_t partition)
{
    return (handle)(uintptr_t)(HANDLE_TAG << 48 | (topology & 0xffffffff) << 16 | is_socket << 15 | gpu << 8 | partition);
}

static uint32_t begin(struct state *state)
{
    if (!users)
        return NOT_INIT;
    return state_lock(state) ? IO : SUCCESS;
}

static uint32_t end(uint32_t status)
{
    state_unlock();
    return status;
}

struct target {
    struct state state;
    const struct gpu *gpu;
    uint32_t index, partition;
};

static uint32_t locate(handle named, uint32_t is_socket, struct target *target)
{
    uint64_t value = (uintptr_t)named;
    if (value >> 48 != HANDLE_TAG || (value >> 15 & 1) != is_socket)
        return INVAL;
    if ((value >> 16 & 0xffffffff) != (target->state.topology & 0xffffffff))
        return NOT_FOUND;
    if (!target->state.driver_loaded)
        return DRIVER_NOT_LOADED;
    target->index = value >> 8 & 0x7f;
    target->partition = value & 0xff;
    if (target->index >= target->state.gpu_count)
        return NOT_FOUND;
    target->gpu = &target->state.gpus[target->index];
    return SUCCESS;
}

/* Lock and find; on success the caller ends with `end`, else nothing is held. */
static uint32_t open_target(handle named, uint32_t is_socket, struct target *target)
{
    uint32_t status = begin(&target->state);
    if (status)
        return status;
    status = locate(named, is_socket, target);
    return status ? end(status) : SUCCESS;
}

static uint32_t read_target(handle named, struct target *target)
{
    uint32_t status = open_target(named, 0, target);
    return status ? status : end(SUCCESS);
}

API amdsmi_init(uint64_t flags)
{
    struct state state;
    if (!(flags & 2)) /* AMDSMI_INIT_AMD_GPUS */
        return NOT_SUPPORTED;
    if (state_lock(&state))
        return IO;
    if (!state.driver_loaded)
        return end(DRIVER_NOT_LOADED);
    if (!users++)
        topology = state.topology;
    return end(SUCCESS);
}

API amdsmi_shut_down(void)
{
    if (!users)
        return NOT_INIT;
    if (!--users)
        kept_handles = 0;
    return SUCCESS;
}

/* --- enumeration --- */

static uint32_t fill(uint32_t *count, handle *handles, uint32_t found, uint32_t is_socket, uint32_t gpu)
{
    if (!count)
        return ARG_PTR_NULL;
    if (handles)
        for (uint32_t i = 0; i < found && i < *count; i++)
            handles[i] = is_socket ? make_handle(1, i, 0) : make_handle(0, gpu, i);
    *count = found;
    return SUCCESS;
}

API amdsmi_get_socket_handles(uint32_t *count, handle *handles)
{
    struct target target;
    uint32_t status = begin(&target.state);
    if (status)
        return status;
    if (!target.state.driver_loaded)
        return end(DRIVER_NOT_LOADED);
    return end(topology == target.state.topology ? fill(count, handles, target.state.gpu_count, 1, 0) : NOT_FOUND);
}

API amdsmi_get_processor_handles(handle socket, uint32_t *count, handle *handles)
{
    struct target target;
    uint32_t status = open_target(socket, 1, &target);
    return status ? status : end(fill(count, handles, partition_count(target.gpu), 0, target.index));
}

API amdsmi_get_processor_handles_by_type(handle socket, uint32_t type, handle *handles, uint32_t *count)
{
    return type == TYPE_AMD_GPU ? amdsmi_get_processor_handles(socket, count, handles) : NOT_SUPPORTED;
}

API amdsmi_get_processor_type(handle processor, uint32_t *type)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *type = TYPE_AMD_GPU;
    return status;
}

static uint64_t pack_bdf(const struct gpu *gpu, uint32_t function)
{
    return (uint64_t)bus_of(gpu) << 8 | function;
}

API amdsmi_get_gpu_device_bdf(handle processor, uint64_t *bdf)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *bdf = pack_bdf(target.gpu, target.partition);
    return status;
}

API amdsmi_get_gpu_bdf_id(handle processor, uint64_t *bdf)
{
    return amdsmi_get_gpu_device_bdf(processor, bdf);
}

API amdsmi_get_processor_handle_from_bdf(uint64_t bdf, handle *processor)
{
    struct state state;
    uint32_t status = begin(&state);
    if (status)
        return status;
    for (uint32_t i = 0; i < state.gpu_count; i++)
        for (uint32_t p = 0; p < partition_count(&state.gpus[i]); p++)
            if (pack_bdf(&state.gpus[i], p) == bdf) {
                *processor = make_handle(0, i, p);
                return end(SUCCESS);
            }
    return end(NOT_FOUND);
}

API amdsmi_get_socket_info(handle socket, size_t size, char *name)
{
    struct target target;
    uint32_t status = open_target(socket, 1, &target);
    if (status)
        return status;
    snprintf(name, size, "%.10s", target.gpu->bdf);
    return end(SUCCESS);
}

API amdsmi_get_gpu_device_uuid(handle processor, uint32_t *size, char *uuid)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    uint64_t id = partition_unique_id(&target.state, target.index, target.partition);
    int needed = snprintf(uuid, *size, "%02xff%04x-0000-1000-80%02x-%010llx", (unsigned)(id >> 56),
                          target.gpu->device_id, target.partition, (unsigned long long)(id & 0xffffffffffull));
    return needed < (int)*size ? SUCCESS : INSUFFICIENT_SIZE;
}

struct enumeration_info {
    uint32_t drm_render, drm_card, hsa_id, hip_id;
    char hip_uuid[256];
};

API amdsmi_get_gpu_enumeration_info(handle processor, struct enumeration_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    uint32_t node = kfd_node(&target.state, target.index, target.partition);
    uint64_t id = partition_unique_id(&target.state, target.index, target.partition);
    *info = (struct enumeration_info){target.gpu->render + target.partition, target.gpu->card + target.partition, node,
                                      node - target.state.cpu_nodes, ""};
    snprintf(info->hip_uuid, sizeof info->hip_uuid, "GPU-%016llx", (unsigned long long)id);
    return SUCCESS;
}

struct kfd_info {
    uint64_t kfd_id;
    uint32_t node_id, current_partition_id, reserved[12];
};

API amdsmi_get_gpu_kfd_info(handle processor, struct kfd_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *info = (struct kfd_info){partition_gpu_id(&target.state, target.index, target.partition),
                                  kfd_node(&target.state, target.index, target.partition), target.partition, {0}};
    return status;
}

API amdsmi_get_gpu_id(handle processor, uint16_t *id)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *id = (uint16_t)target.gpu->device_id;
    return status;
}

/* --- what a GPU is --- */

struct asic_info {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[256];
    uint32_t oam_id, num_of_compute_units, padding;
    uint64_t target_graphics_version;
    uint32_t subsystem_id, reserved[21];
} __attribute__((packed));

/* 90402 is printed as gfx942: decimal digits become hexadecimal ones. */
static uint64_t graphics_version(uint32_t version)
{
    return (uint64_t)(version / 10000) << 8 | (version / 100 % 100) << 4 | version % 100;
}

API amdsmi_get_gpu_asic_info(handle processor, struct asic_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    memset(info, 0, sizeof *info);
    snprintf(info->market_name, sizeof info->market_name, "%s", target.gpu->product);
    snprintf(info->vendor_name, sizeof info->vendor_name, "Advanced Micro Devices Inc. [AMD/ATI]");
    uint64_t id = partition_unique_id(&target.state, target.index, target.partition);
    snprintf(info->asic_serial, sizeof info->asic_serial, "%016llx", (unsigned long long)id);
    info->vendor_id = info->subvendor_id = 0x1002;
    info->device_id = info->subsystem_id = target.gpu->device_id;
    info->oam_id = target.index;
    info->num_of_compute_units = target.gpu->compute_units / partition_count(target.gpu);
    info->target_graphics_version = graphics_version(target.gpu->gfx_version);
    return SUCCESS;
}

struct vram_info {
    uint32_t type;
    char vendor[256];
    uint32_t padding;
    uint64_t size_mb;
    uint32_t bit_width, padding_1;
    uint64_t max_bandwidth, reserved[37];
} __attribute__((packed));

API amdsmi_get_gpu_vram_info(handle processor, struct vram_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    memset(info, 0, sizeof *info);
    info->type = VRAM_HBM3;
    snprintf(info->vendor, sizeof info->vendor, "HYNIX");
    info->size_mb = partition_memory(target.gpu, target.partition) >> 20;
    info->bit_width = 8192;
    return SUCCESS;
}

API amdsmi_get_gpu_memory_total(handle processor, uint32_t type, uint64_t *bytes)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *bytes = type ? 0 : partition_memory(target.gpu, target.partition); /* 0: VRAM */
    return status;
}

API amdsmi_get_gpu_memory_usage(handle processor, uint32_t type, uint64_t *bytes)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    (void)type;
    if (!status)
        *bytes = 0;
    return status;
}

struct board_info {
    char model_number[256], product_serial[256], fru_id[256], product_name[256], manufacturer_name[256];
    uint64_t reserved[64];
};

API amdsmi_get_gpu_board_info(handle processor, struct board_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    memset(info, 0, sizeof *info);
    snprintf(info->product_name, sizeof info->product_name, "%s", target.gpu->product);
    snprintf(info->manufacturer_name, sizeof info->manufacturer_name, "AMD");
    return SUCCESS;
}

struct driver_info {
    char version[256], date[256], name[256];
};

API amdsmi_get_gpu_driver_info(handle processor, struct driver_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    memset(info, 0, sizeof *info);
    snprintf(info->version, sizeof info->version, "%s", target.state.driver_version);
    snprintf(info->name, sizeof info->name, "amdgpu");
    return SUCCESS;
}

struct library_version {
    uint32_t major, minor, release, padding;
    const char *build;
};

API amdsmi_get_lib_version(struct library_version *version)
{
    *version = (struct library_version){26, 0, 2, 0, "simulator"};
    return SUCCESS;
}

API amdsmi_get_gpu_vendor_name(handle processor, char *name, size_t size)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        snprintf(name, size, "Advanced Micro Devices, Inc. [AMD/ATI]");
    return status;
}

API amdsmi_get_gpu_virtualization_mode(handle processor, uint32_t *mode)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *mode = VIRTUALIZATION_BAREMETAL;
    return status;
}

struct process_info {
    char name[256];
    uint32_t pid, padding;
    uint64_t memory, engine[8], memory_usage[8];
    char container[256];
    uint32_t cu_occupancy, reserved[11];
} __attribute__((packed));

API amdsmi_get_gpu_process_list(handle processor, uint32_t *count, struct process_info *list)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    if (!count)
        return ARG_PTR_NULL;
    uint32_t found = is_busy(target.gpu) && target.gpu->holder > 0;
    if (list && *count >= found && found) {
        memset(list, 0, sizeof *list);
        list->pid = (uint32_t)target.gpu->holder;
        snprintf(list->name, sizeof list->name, "holder");
    }
    *count = found;
    return SUCCESS;
}

/* --- topology --- */

struct xgmi_info {
    uint8_t lanes, padding[7];
    uint64_t hive_id, node_id;
    uint32_t index, reserved[9];
};

API amdsmi_get_xgmi_info(handle processor, struct xgmi_info *info)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (status)
        return status;
    if (!target.gpu->hive_id)
        return NOT_SUPPORTED;
    *info = (struct xgmi_info){.lanes = 16, .hive_id = target.gpu->hive_id, .node_id = target.gpu->unique_id,
                               .index = target.index};
    return SUCCESS;
}

API amdsmi_topo_get_numa_node_number(handle processor, uint32_t *node)
{
    struct target target;
    uint32_t status = read_target(processor, &target);
    if (!status)
        *node = target.gpu->numa_node;
    return status;
}

API amdsmi_get_gpu_topo_numa_affinity(handle processor, int32_t *node)
{
    return amdsmi_topo_get_numa_node_number(processor, (uint32_t *)node);
}

static uint32_t link_between(handle one, handle other, uint64_t *hops, uint32_t *type, uint64_t *weight)
{
    struct target a, b;
    uint32_t status = read_target(one, &a);
    if (!status)
        status = read_target(other, &b);
    if (status)
        return status;
    int is_same = a.index == b.index, is_hive = a.gpu->hive_id && a.gpu->hive_id == b.gpu->hive_id;
    *type = is_same || is_hive ? LINK_XGMI : LINK_PCIE;
    *hops = is_same || is_hive ? 1 : 2;
    *weight = is_same ? 13 : !is_hive ? 40 : a.gpu->xcc_count ? 41 : 15;
    return SUCCESS;
}

API amdsmi_topo_get_link_type(handle one, handle other, uint64_t *hops, uint32_t *type)
{
    uint64_t weight;
    return link_between(one, other, hops, type, &weight);
}

API amdsmi_topo_get_link_weight(handle one, handle other, uint64_t *weight)
{
    uint64_t hops;
    uint32_t type;
    return link_between(one, other, &hops, &type, weight);
}

API amdsmi_is_P2P_accessible(handle one, handle other, uint8_t *accessible)
{
    uint64_t hops, weight;
    uint32_t type, status = link_between(one, other, &hops, &type, &weight);
    if (!status)
        *accessible = type == LINK_XGMI;
    return status;
}

/* --- partitions: reading --- */

/* The library answers for the primary partition only. */
static uint32_t read_primary(handle processor, struct target *target)
{
    uint32_t status = read_target(processor, target);
    if (status)
        return status;
    return target->gpu->xcc_count && !target->partition ? SUCCESS : NOT_SUPPORTED;
}

API amdsmi_get_gpu_compute_partition(handle processor, char *name, uint32_t size)
{
    struct target target;
    uint32_t status = read_primary(processor, &target);
    if (!status)
        snprintf(name, size, "%s", compute_mode_name(target.gpu->compute_mode));
    return status;
}

API amdsmi_get_gpu_memory_partition(handle processor, char *name, uint32_t size)
{
    struct target target;
    uint32_t status = read_primary(processor, &target);
    if (!status)
        snprintf(name, size, "NPS%u", target.gpu->memory_mode);
    return status;
}

/* Bits of amdsmi_nps_caps_t: NPS1, NPS2, NPS4, NPS8. */
static uint32_t memory_caps(const struct gpu *gpu, uint32_t compute_mode)
{
    uint32_t caps = 0;
    for (uint32_t bit = 0; bit < 4; bit++)
        if (compute_mode ? is_compatible(gpu, compute_mode, 1u << bit) : (int)(gpu->memory_modes >> (1u << bit) & 1))
            caps |= 1u << bit;
    return caps;
}

struct memory_config {
    uint32_t caps, mode, num_ranges, padding;
    struct {
        uint32_t type, padding;
        uint64_t start, end;
    } ranges[32];
    uint64_t reserved[11];
};

API amdsmi_get_gpu_memory_partition_config(handle processor, struct memory_config *config)
{
    struct target target;
    uint32_t status = read_primary(processor, &target);
    if (status)
        return status;
    memset(config, 0, sizeof *config);
    config->caps = memory_caps(target.gpu, COMPUTE_NONE);
    config->mode = target.gpu->memory_mode;
    return SUCCESS;
}

struct partition_profile {
    uint32_t type, num_partitions, memory_caps, index, num_resources, resources[8][32], padding;
    uint64_t reserved[13];
};

struct resource_profile {
    uint32_t index, type, amount, sharing;
    uint64_t reserved[6];
};

struct profile_config {
    uint32_t num_profiles, num_resource_profiles;
    struct resource_profile resources[32];
    uint32_t default_profile, padding;
    struct partition_profile profiles[32];
    uint64_t reserved[30];
};

static struct partition_profile describe(const struct gpu *gpu, uint32_t mode, uint32_t index)
{
    return (struct partition_profile){.type = mode, .num_partitions = partitions_in(gpu, mode),
                                      .memory_caps = memory_caps(gpu, mode), .index = index, .num_resources = 4};
}

/* Profiles are the model's modes in ascending order; COMPUTE_NONE past the last. */
static uint32_t mode_of_profile(const struct gpu *gpu, uint32_t index)
{
    for (uint32_t mode = SPX; mode <= CPX; mode++)
        if (partitions_in(gpu, mode) && !index--)
            return mode;
    return COMPUTE_NONE;
}

API amdsmi_get_gpu_accelerator_partition_profile(handle processor, struct partition_profile *profile, uint32_t *ids)
{
    struct target target;
    uint32_t status = read_target(processor, &target), index = 0;
    if (status)
        return status;
    ids[0] = target.partition;
    if (!target.gpu->xcc_count || target.partition)
        return NOT_SUPPORTED;
    while (mode_of_profile(target.gpu, index) != target.gpu->compute_mode)
        index++;
    *profile = describe(target.gpu, target.gpu->compute_mode, index);
    return SUCCESS;
}

static void describe_resources(const struct gpu *gpu, uint32_t mode, struct resource_profile *resources)
{
    const uint32_t types[ENGINE_KINDS] = {0, 2, 3, 4}; /* XCC, DECODER, DMA, JPEG */
    struct engines engines[ENGINE_KINDS];
    describe_engines(gpu, mode, engines);
    for (uint32_t i = 0; i < ENGINE_KINDS; i++)
        resources[i] = (struct resource_profile){i, types[i], engines[i].amount, engines[i].sharing, {0}};
}

API amdsmi_get_gpu_accelerator_partition_profile_config(handle processor, struct profile_config *config)
{
    struct target target;
    uint32_t status = read_primary(processor, &target), mode;
    if (status)
        return status;
    if (geteuid())
        return NO_PERM;
    memset(config, 0, sizeof *config);
    config->num_resource_profiles = 4;
    for (uint32_t i = 0; (mode = mode_of_profile(target.gpu, i)) != COMPUTE_NONE; i++) {
        config->profiles[i] = describe(target.gpu, mode, i);
        describe_resources(target.gpu, mode, &config->resources[4 * i]);
        config->num_profiles++;
    }
    return SUCCESS;
}

/* --- partitions: changing --- */

static uint32_t check_change(const struct target *target)
{
    if (geteuid())
        return NO_PERM;
    if (!target->gpu->xcc_count || target->partition)
        return NOT_SUPPORTED;
    return SUCCESS;
}

API amdsmi_set_gpu_compute_partition(handle processor, uint32_t mode)
{
    struct target target;
    uint32_t status = open_target(processor, 0, &target);
    if (status)
        return status;
    status = check_change(&target);
    if (status)
        return end(status);
    if (mode < SPX || mode > CPX)
        return end(INVAL);
    if (!is_compatible(target.gpu, mode, target.gpu->memory_mode))
        return end(SETTING_UNAVAILABLE);
    if (mode == target.gpu->compute_mode)
        return end(SUCCESS);
    if (is_busy(target.gpu))
        return end(BUSY);
    target.state.gpus[target.index].compute_mode = mode;
    target.state.topology++;
    kept_handles = 1;
    return end(state_store(&target.state) ? IO : SUCCESS);
}

API amdsmi_set_gpu_accelerator_partition_profile(handle processor, uint32_t index)
{
    struct target target;
    uint32_t status = read_primary(processor, &target);
    if (status)
        return status;
    uint32_t mode = mode_of_profile(target.gpu, index);
    return mode == COMPUTE_NONE ? INVAL : amdsmi_set_gpu_compute_partition(processor, mode);
}

/* Recorded for the whole hive; read back only after the driver has been loaded again. */
API amdsmi_set_gpu_memory_partition(handle processor, uint32_t mode)
{
    struct target target;
    uint32_t status = open_target(processor, 0, &target);
    if (status)
        return status;
    status = check_change(&target);
    if (!status && target.gpu->apu)
        status = NOT_SUPPORTED;
    if (!status && (mode > 8 || !(target.gpu->memory_modes & (1u << mode))))
        status = INVAL;
    if (status)
        return end(status);
    if (mode == target.gpu->memory_mode) /* the kernel skips it, and keeps what was asked for before */
        return end(SUCCESS);
    for (uint32_t i = 0; i < target.state.gpu_count; i++) {
        struct gpu *gpu = &target.state.gpus[i];
        if (i == target.index || (target.gpu->hive_id && gpu->hive_id == target.gpu->hive_id))
            gpu->requested_memory_mode = mode;
    }
    return end(state_store(&target.state) ? IO : SUCCESS);
}

API amdsmi_set_gpu_memory_partition_mode(handle processor, uint32_t mode)
{
    return amdsmi_set_gpu_memory_partition(processor, mode);
}

static int is_reload_blocked(struct state *state)
{
    int blocked = kept_handles;
    for (uint32_t i = 0; i < state->gpu_count; i++)
        blocked |= is_busy(&state->gpus[i]);
    if (!blocked && state->failing_reloads) {
        state->failing_reloads--;
        return state_store(state), 1;
    }
    return blocked;
}

/* `modprobe -r amdgpu && modprobe amdgpu`: who kills it in between leaves the driver unloaded. */
API amdsmi_gpu_driver_reload(void)
{
    struct state state;
    uint32_t status = begin(&state);
    if (status)
        return status;
    if (geteuid())
        return end(NO_PERM);
    if (is_reload_blocked(&state))
        return end(AMDGPU_RESTART_ERR);
    int is_lost = state.losing_reloads > 0;
    if (is_lost)
        state.losing_reloads--;
    state.driver_loaded = 0;
    if (state_store(&state))
        return end(IO);
    usleep(state.reload_pause_ms * 1000);
    if (is_lost)
        return end(AMDGPU_RESTART_ERR);
    load_driver(&state);
    return end(state_store(&state) ? IO : SUCCESS);
}

/* --- the rest of what the Python package binds --- */

#define UNSUPPORTED(name) API name(void) { return users ? NOT_SUPPORTED : NOT_INIT; }
#include "unsupported.h"

__attribute__((visibility("default"))) void amdsmi_free_name_value_pairs(void *pairs)
{
    (void)pairs;
}
