/* sysfs, KFD topology and device nodes, drawn from the state. A file is replaced in one move and only when it differs,
 * since one read of a sysfs file is never torn; several files together may be, which is what mid-change reads see. */
#define _GNU_SOURCE
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define DRM_MAJOR 226       /* linux/Documentation/admin-guide/devices.txt */
#define XCP_DEVICES 7       /* platform devices per GPU: partitions beyond the first */
#define PCI_DRIVER "sys/bus/pci/drivers/amdgpu"

static int first_error;

static void note(int failed)
{
    if (failed && !first_error)
        first_error = errno ? errno : EIO;
}

static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0755) && errno != EEXIST)
            note(1);
        *slash = '/';
    }
}

static void full_path(char *path, const char *relative)
{
    snprintf(path, PATH_MAX, "%s/%s", root_folder(), relative);
}

static int holds(const char *path, const char *text, size_t size)
{
    char now[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, now, sizeof now);
    if (fd >= 0)
        close(fd);
    return got == (ssize_t)size && !memcmp(now, text, size);
}

void put(const char *folder, const char *name, const char *format, ...)
{
    char path[PATH_MAX], fresh[PATH_MAX], text[2048], relative[1024];
    va_list arguments;
    va_start(arguments, format);
    size_t size = (size_t)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(relative, sizeof relative, "%s/%s", folder, name);
    full_path(path, relative);
    if (holds(path, text, size))
        return;
    make_folders(path);
    snprintf(fresh, sizeof fresh, "%.*s.fresh", (int)(sizeof fresh - 8), path);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    note(fd < 0 || write(fd, text, size) != (ssize_t)size);
    if (fd >= 0)
        close(fd);
    note(rename(fresh, path));
}

static void put_link(const char *relative, const char *target)
{
    char path[PATH_MAX], now[PATH_MAX];
    full_path(path, relative);
    ssize_t got = readlink(path, now, sizeof now - 1);
    if (got > 0 && (size_t)got == strlen(target) && !memcmp(now, target, (size_t)got))
        return;
    make_folders(path);
    if (got >= 0)
        unlink(path);
    note(symlink(target, path));
}

static void put_device(const char *name, uint32_t major, uint32_t minor)
{
    char path[PATH_MAX], relative[256];
    struct stat now;
    snprintf(relative, sizeof relative, "dev/%s", name);
    full_path(path, relative);
    make_folders(path);
    if (!stat(path, &now)) {
        if (S_ISCHR(now.st_mode) && now.st_rdev == makedev(major, minor))
            return;
        unlink(path);
    }
    note(mknod(path, S_IFCHR | 0666, makedev(major, minor)));
    note(chmod(path, 0666));
}

static int remove_entry(const char *path, const struct stat *stat, int kind, struct FTW *where)
{
    (void)stat, (void)kind, (void)where;
    return remove(path);
}

static void take_away(const char *relative)
{
    char path[PATH_MAX];
    full_path(path, relative);
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

void take_surplus(const char *folder, uint32_t count)
{
    char entry[256], path[PATH_MAX];
    /* The first number without a folder is past the last. */
    for (;; count++) {
        snprintf(entry, sizeof entry, "%s/%u", folder, count);
        full_path(path, entry);
        if (access(path, F_OK))
            return;
        take_away(entry);
    }
}

static void pci_folder(const struct gpu *gpu, char *folder, size_t size)
{
    snprintf(folder, size, "sys/devices/%s/0000:%.2s:01.1/%s", gpu->pcie_root, gpu->pcie_root + 8, gpu->bdf);
}

/* One DRM minor pair under `<device>/drm`, its links under sys/class/drm, and its device nodes. */
static void draw_drm(const char *device, uint32_t card, uint32_t render)
{
    char folder[640], link[768], target[768];
    const char *kinds[] = {"card", "renderD"};
    uint32_t minors[] = {card, render};
    for (int i = 0; i < 2; i++) {
        snprintf(folder, sizeof folder, "%s/drm/%s%u", device, kinds[i], minors[i]);
        put(folder, "dev", "%d:%u\n", DRM_MAJOR, minors[i]);
        snprintf(link, sizeof link, "%s/device", folder);
        put_link(link, "../..");
        snprintf(link, sizeof link, "sys/class/drm/%s%u", kinds[i], minors[i]);
        snprintf(target, sizeof target, "../../../%s", folder);
        put_link(link, target);
        snprintf(link, sizeof link, "dri/%s%u", kinds[i], minors[i]);
        put_device(link, DRM_MAJOR, minors[i]);
    }
}

/* Those that go with a memory mode, as newer drivers list them; memory mode 0: all that the GPU has. */
static void list_compute_modes(const struct gpu *gpu, uint32_t memory_mode, char *text, size_t size)
{
    text[0] = 0;
    for (uint32_t mode = SPX; mode <= CPX; mode++)
        if (memory_mode ? is_compatible(gpu, mode, memory_mode) : partitions_in(gpu, mode) != 0) {
            size_t used = strlen(text);
            snprintf(text + used, size - used, "%s%s", used ? ", " : "", compute_mode_name(mode));
        }
}

static void list_memory_modes(const struct gpu *gpu, char *text, size_t size)
{
    text[0] = 0;
    for (uint32_t mode = 1; mode <= 8; mode *= 2)
        if (gpu->memory_modes & (1u << mode)) {
            size_t used = strlen(text);
            snprintf(text + used, size - used, "%sNPS%u", used ? ", " : "", mode);
        }
}

static void draw_modes(const struct gpu *gpu, const char *folder)
{
    char modes[128], config[1024];
    if (!gpu->xcc_count)
        return;
    list_compute_modes(gpu, gpu->memory_mode, modes, sizeof modes);
    put(folder, "available_compute_partition", "%s\n", modes);
    put(folder, "current_compute_partition", "%s\n", compute_mode_name(gpu->compute_mode));
    put(folder, "current_memory_partition", "NPS%u\n", gpu->memory_mode);
    snprintf(config, sizeof config, "%s/compute_partition_config", folder);
    list_compute_modes(gpu, 0, modes, sizeof modes);
    put(config, "supported_xcp_configs", "%s\n", modes);
    put(config, "xcp_config", "%s\n", compute_mode_name(gpu->compute_mode));
    struct engines engines[ENGINE_KINDS];
    describe_engines(gpu, gpu->compute_mode, engines);
    for (int i = 0; i < ENGINE_KINDS; i++) {
        char kind[1100];
        snprintf(kind, sizeof kind, "%s/%s", config, engines[i].name);
        put(kind, "num_inst", "%u\n", engines[i].amount);
        put(kind, "num_shared", "%u\n", engines[i].sharing);
    }
    list_memory_modes(gpu, modes, sizeof modes);
    put(config, "supported_nps_configs", "%s\n", modes);
    if (!gpu->apu)
        put(folder, "available_memory_partition", "%s\n", modes);
}

static void draw_pci(const struct state *state, uint32_t index)
{
    const struct gpu *gpu = &state->gpus[index];
    char folder[512], link[640], target[640];
    pci_folder(gpu, folder, sizeof folder);
    put(folder, "vendor", "0x1002\n");
    put(folder, "device", "0x%04x\n", gpu->device_id);
    put(folder, "class", "0x120000\n");
    put(folder, "numa_node", "%u\n", gpu->numa_node);
    put(folder, "product_name", "%s\n", gpu->product);
    put(folder, "unique_id", "%016lx\n", gpu->unique_id);
    put(folder, "mem_info_vram_total", "%lu\n", gpu->vram_bytes);
    if (gpu->hive_id)
        put(folder, "xgmi_physical_id", "%u\n", index);
    draw_modes(gpu, folder);
    snprintf(link, sizeof link, "%s/driver", folder);
    put_link(link, "../../../../bus/pci/drivers/amdgpu");
    snprintf(target, sizeof target, "../../../../%s", folder + 4);
    snprintf(link, sizeof link, "sys/bus/pci/devices/%s", gpu->bdf);
    put_link(link, target + 3);
    snprintf(link, sizeof link, PCI_DRIVER "/%s", gpu->bdf);
    put_link(link, target);
    draw_drm(folder, gpu->card, gpu->render);
}

static void draw_xcp(const struct state *state)
{
    char folder[128];
    uint32_t number = 0;
    for (uint32_t i = 0; i < state->gpu_count; i++)
        for (uint32_t p = 1; state->gpus[i].xcc_count && p <= XCP_DEVICES; p++, number++) {
            snprintf(folder, sizeof folder, "sys/devices/platform/amdgpu_xcp%c%u", state->dotted_xcp ? '.' : '_', number);
            draw_drm(folder, state->gpus[i].card + p, state->gpus[i].render + p);
        }
}

static void draw_cpu_node(uint32_t node)
{
    char folder[128];
    snprintf(folder, sizeof folder, KFD "/topology/nodes/%u", node);
    put(folder, "gpu_id", "0\n");
    put(folder, "name", "\n");
    put(folder, "properties", "cpu_cores_count 96\nsimd_count 0\ndrm_render_minor 0\nvendor_id 0\nunique_id 0\n");
}

static void draw_gpu_node(const struct state *state, uint32_t index, uint32_t p)
{
    const struct gpu *gpu = &state->gpus[index];
    uint32_t count = partition_count(gpu), units = gpu->compute_units / count;
    struct link_counts links = {0};
    if (state->kfd_links)
        links = count_links(state, index);
    char folder[160];
    snprintf(folder, sizeof folder, KFD "/topology/nodes/%u", kfd_node(state, index, p));
    put(folder, "gpu_id", "%u\n", partition_gpu_id(state, index, p));
    put(folder, "name", "ip discovery\n");
    put(folder, "properties",
        "cpu_cores_count 0\nsimd_count %u\nmem_banks_count 1\ncaches_count 0\nio_links_count %u\np2p_links_count %u\n"
        "max_waves_per_simd 8\nwave_front_size 64\n"
        "array_count %u\ncu_per_simd_array 10\nsimd_per_cu 4\nnum_xcc %u\nvendor_id 4098\ndevice_id %u\n"
        "location_id %u\ndomain 0\ndrm_render_minor %u\nhive_id %lu\nnum_sdma_engines %u\nnum_cp_queues 24\n"
        "max_engine_clk_fcompute %u\nlocal_mem_size 0\ngfx_target_version %u\nunique_id %lu\n",
        units * 4, links.io, links.p2p, gpu->xcc_count ? 4 * gpu->xcc_count / count : 8, gpu->xcc_count ? gpu->xcc_count / count : 1,
        gpu->device_id, partition_location(gpu, p), gpu->render + p, gpu->hive_id,
        gpu->xcc_count ? 2 * gpu->xcc_count / count : 5, gpu->max_clock_mhz, gpu->gfx_version,
        partition_unique_id(state, index, p));
    snprintf(folder, sizeof folder, KFD "/topology/nodes/%u/mem_banks/0", kfd_node(state, index, p));
    put(folder, "properties", "heap_type 1\nsize_in_bytes %lu\nflags 0\nwidth 8192\nmem_clk_max 1300\n",
        partition_memory(gpu, p));
}

static void draw_kfd(const struct state *state)
{
    put(KFD, "dev", "%u:0\n", state->kfd_major);
    put(KFD "/topology", "generation_id", "%lu\n", state->topology + 1);
    put(KFD "/topology", "system_properties", "platform_oem 0\nplatform_id 0\nplatform_rev 0\n");
    for (uint32_t node = 0; node < state->cpu_nodes; node++)
        draw_cpu_node(node);
    for (uint32_t i = 0; i < state->gpu_count; i++)
        for (uint32_t p = 0; p < partition_count(&state->gpus[i]); p++)
            draw_gpu_node(state, i, p);
    put_link("sys/class/kfd/kfd", "../../devices/virtual/kfd/kfd");
    put_device("kfd", state->kfd_major, 0);
}

/* Not after the driver was away. */
static int has_links(const struct state *state)
{
    char folder[128], path[PATH_MAX];
    snprintf(folder, sizeof folder, KFD "/topology/nodes/%u/io_links", kfd_node(state, 0, 0));
    full_path(path, folder);
    return !access(path, F_OK);
}

static void draw_driver(const struct state *state)
{
    put("sys/module/amdgpu", "initstate", "live\n");
    if (state->driver_version[0])
        put("sys/module/amdgpu", "version", "%s\n", state->driver_version);
    put("sys/module/amdgpu", "srcversion", "%s\n", state->source_version);
    put_link("sys/module/amdgpu/drivers/pci:amdgpu", "../../../bus/pci/drivers/amdgpu");
    put_link(PCI_DRIVER "/module", "../../../../module/amdgpu");
}

/* The GPUs stay on the PCI bus without a driver; all that the driver shows goes. */
static void undraw(const struct state *state)
{
    char folder[512], entry[1024];
    const char *shown[] = {"sys/module/amdgpu", PCI_DRIVER, "sys/class/drm", "sys/devices/platform", "dev/dri", "dev/kfd",
                           "sys/class/kfd", "sys/devices/virtual/kfd"};
    const char *attributes[] = {"drm", "driver", "product_name", "unique_id", "mem_info_vram_total",
                                "available_compute_partition", "current_compute_partition", "current_memory_partition",
                                "available_memory_partition", "compute_partition_config", "xgmi_physical_id"};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        take_away(shown[i]);
    for (uint32_t i = 0; i < state->gpu_count; i++)
        for (size_t k = 0; k < sizeof attributes / sizeof *attributes; k++) {
            pci_folder(&state->gpus[i], folder, sizeof folder);
            snprintf(entry, sizeof entry, "%s/%s", folder, attributes[k]);
            take_away(entry);
        }
}

int render(const struct state *state)
{
    first_error = 0;
    if (!state->driver_loaded) {
        undraw(state);
        return first_error;
    }
    draw_driver(state);
    for (uint32_t i = 0; i < state->gpu_count; i++)
        draw_pci(state, i);
    if (state->drawn_topology != state->topology && state->change_pause_ms) {
        take_away(KFD "/topology/nodes");
        usleep(state->change_pause_ms * 1000);
    }
    draw_kfd(state);
    take_surplus(KFD "/topology/nodes", kfd_node(state, state->gpu_count, 0));
    if (state->kfd_links && (state->drawn_topology != state->topology || !has_links(state)))
        draw_links(state);
    draw_xcp(state);
    return first_error;
}
