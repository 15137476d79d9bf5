#define _GNU_SOURCE
#include "state.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int lock_fd = -1;
static char folder[PATH_MAX];
static char root[PATH_MAX];

#ifdef STATIC_TOOL
const char *library_folder(void)
{
    return strcpy(folder, "/opt/rocm/lib");
}
#else
const char *library_folder(void)
{
    if (!folder[0]) {
        Dl_info info;
        char resolved[PATH_MAX];
        if (dladdr((void *)library_folder, &info) && realpath(info.dli_fname, resolved))
            snprintf(folder, sizeof folder, "%s", dirname(resolved));
    }
    return folder;
}
#endif

const char *root_folder(void)
{
    if (!root[0]) {
        snprintf(root, sizeof root, "%s", library_folder());
        for (int up = 0; up < 3; up++) /* opt/rocm/lib */
            *strrchr(root, '/') = 0;
    }
    return root;
}

static uint64_t checksum(const struct state *state)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    const unsigned char *byte = (const unsigned char *)state;
    for (size_t i = 0; i < offsetof(struct state, checksum); i++)
        hash = (hash ^ byte[i]) * 0x100000001b3ull;
    return hash;
}

static int read_slot(int slot, struct state *state)
{
    off_t at = (off_t)(slot * sizeof *state);
    return pread(lock_fd, state, sizeof *state, at) == sizeof *state && state->magic == STATE_MAGIC &&
           state->checksum == checksum(state);
}

static int read_newest(struct state *state)
{
    struct state other;
    int first = read_slot(0, state), second = read_slot(1, &other);
    if (!first && !second)
        return EIO;
    if (!first || (second && other.sequence > state->sequence))
        *state = other;
    return 0;
}

static int open_locked(void)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/amd-simulator.state", library_folder());
    lock_fd = open(path, O_RDWR | O_CLOEXEC);
    if (lock_fd < 0)
        return errno;
    while (flock(lock_fd, LOCK_EX))
        if (errno != EINTR)
            return errno;
    return 0;
}

static int write_slot(struct state *state)
{
    state->magic = STATE_MAGIC;
    state->checksum = checksum(state);
    off_t at = (off_t)((state->sequence & 1) * sizeof *state);
    return pwrite(lock_fd, state, sizeof *state, at) == sizeof *state ? 0 : errno;
}

/* The drawing done is part of the state, so it takes the next sequence number too. */
static int draw(struct state *state)
{
    int failed = render(state);
    if (failed)
        return failed;
    state->drawn_topology = state->topology;
    state->sequence++;
    state->rendered = state->sequence;
    return write_slot(state);
}

int state_store(struct state *state)
{
    state->sequence++;
    int failed = write_slot(state);
    return failed ? failed : draw(state);
}

int state_lock(struct state *state)
{
    int failed = open_locked();
    if (!failed)
        failed = read_newest(state);
    if (!failed && state->rendered != state->sequence)
        failed = draw(state);
    if (!failed && state->loading) {
        load_driver(state);
        failed = state_store(state);
    }
    if (failed)
        state_unlock();
    return failed;
}

void state_unlock(void)
{
    if (lock_fd >= 0)
        close(lock_fd);
    lock_fd = -1;
}

/* --- what the command line needs beyond AMD's interface --- */

__attribute__((visibility("default"))) size_t simulator_state_size(void)
{
    return sizeof(struct state);
}

__attribute__((visibility("default"))) int simulator_lock(struct state *state)
{
    return state_lock(state);
}

/* Store what the caller changed, draw it, and let go; NULL lets go without a change. */
__attribute__((visibility("default"))) int simulator_release(struct state *state)
{
    int failed = state ? state_store(state) : 0;
    state_unlock();
    return failed;
}

/* A first state, whatever was there before; handles of before stay invalid. */
__attribute__((visibility("default"))) int simulator_create(struct state *state)
{
    struct state before;
    int failed = open_locked();
    if (!failed && !read_newest(&before)) {
        state->sequence = before.sequence;
        state->topology = before.topology + 1;
    }
    if (!failed)
        failed = state_store(state);
    state_unlock();
    return failed;
}

/* --- rules: amdgpu's aqua_vanjaram.c, as the facts of the field describe it --- */

static const char *const MODE_NAMES[] = {"", "SPX", "DPX", "TPX", "QPX", "CPX"};

const char *compute_mode_name(uint32_t mode)
{
    return mode <= CPX ? MODE_NAMES[mode] : "";
}

uint32_t partitions_in(const struct gpu *gpu, uint32_t compute_mode)
{
    uint32_t xcc = gpu->xcc_count;
    switch (compute_mode) {
    case SPX: return xcc ? 1 : 0;
    case DPX: return xcc == 8 || xcc == 4 ? 2 : 0;
    case TPX: return xcc == 6 ? 3 : 0;
    case QPX: return xcc == 8 ? 4 : 0;
    case CPX: return xcc;
    default: return 0;
    }
}

void describe_engines(const struct gpu *gpu, uint32_t compute_mode, struct engines engines[ENGINE_KINDS])
{
    uint32_t parts = partitions_in(gpu, compute_mode), xcc = gpu->xcc_count;
    /* Decoders and JPEG engines: one per two XCCs. */
    const struct engines all[ENGINE_KINDS] = {{"xcc", xcc, 1}, {"dec", xcc / 2, 1}, {"dma", 2 * xcc, 1}, {"jpeg", xcc / 2, 1}};
    for (int i = 0; i < ENGINE_KINDS; i++) {
        uint32_t amount = all[i].amount / parts;
        engines[i] = (struct engines){all[i].name, amount ? amount : 1, amount ? 1 : parts / all[i].amount};
    }
}

int is_compatible(const struct gpu *gpu, uint32_t compute_mode, uint32_t memory_mode)
{
    if (!partitions_in(gpu, compute_mode) || !(gpu->memory_modes & (1u << memory_mode)))
        return 0;
    switch (compute_mode) {
    case SPX: return memory_mode == 1;
    case DPX: return memory_mode == 1 || memory_mode == 2;
    case TPX: return memory_mode == 1 || memory_mode == 4;
    default: return memory_mode == 1 || memory_mode == 4 || (memory_mode == 2 && gpu->two_io_dies);
    }
}

uint32_t automatic_mode(const struct gpu *gpu, uint32_t memory_mode)
{
    if (!gpu->xcc_count)
        return COMPUTE_NONE;
    return memory_mode == 1 ? SPX : memory_mode == 2 ? DPX : CPX;
}

void load_driver(struct state *state)
{
    state->loading = 0;
    state->driver_loaded = 1;
    state->topology++;
    for (uint32_t i = 0; i < state->gpu_count; i++) {
        struct gpu *gpu = &state->gpus[i];
        if (gpu->requested_memory_mode)
            gpu->memory_mode = gpu->requested_memory_mode;
        gpu->requested_memory_mode = 0;
        gpu->compute_mode = automatic_mode(gpu, gpu->memory_mode);
    }
}

uint32_t partition_count(const struct gpu *gpu)
{
    return gpu->xcc_count ? partitions_in(gpu, gpu->compute_mode) : 1;
}

/* One range per NUMA domain of the memory; the last one lacks the 16 MiB that the firmware keeps. */
uint64_t partition_memory(const struct gpu *gpu, uint32_t partition)
{
    const uint64_t kept = 16ull << 20;
    uint32_t ranges = gpu->memory_mode ? gpu->memory_mode : 1;
    uint32_t sharing = partition_count(gpu) / ranges;
    uint64_t range = (gpu->vram_bytes + kept) / ranges;
    if (partition / sharing == ranges - 1)
        range -= kept;
    return range / sharing;
}

uint64_t partition_unique_id(const struct state *state, uint32_t gpu, uint32_t partition)
{
    return state->gpus[gpu].unique_id + (state->distinct_ids ? partition : 0);
}

uint32_t bus_of(const struct gpu *gpu)
{
    return (uint32_t)strtoul(gpu->bdf + 5, NULL, 16);
}

uint32_t partition_location(const struct gpu *gpu, uint32_t partition)
{
    return (bus_of(gpu) << 8) + partition;
}

/* KFD's gpu_id is a hash of what the node is; a rebuilt node has another one. */
uint32_t partition_gpu_id(const struct state *state, uint32_t gpu, uint32_t partition)
{
    const struct gpu *one = &state->gpus[gpu];
    uint64_t hash = one->unique_id ^ ((uint64_t)partition_location(one, partition) << 20) ^
                    ((uint64_t)one->compute_mode << 4) ^ one->memory_mode;
    return (uint32_t)((hash * 0x9e3779b97f4a7c15ull) >> 48) | 1;
}

uint32_t kfd_node(const struct state *state, uint32_t gpu, uint32_t partition)
{
    uint32_t node = state->cpu_nodes;
    for (uint32_t i = 0; i < gpu; i++)
        node += partition_count(&state->gpus[i]);
    return node + partition;
}

int is_busy(const struct gpu *gpu)
{
    if (gpu->holder == NO_HOLDER)
        return 0;
    return gpu->holder == UNNAMED_HOLDER || kill(gpu->holder, 0) == 0 || errno == EPERM;
}
