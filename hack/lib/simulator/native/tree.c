/* What the kernel driver shows of instances: /proc/driver/nvidia/capabilities and the nodes in /dev/nvidia-caps. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "state.h"

/* A client may be killed between any two calls. Whoever repairs the tree goes by the `access` file and its folder:
 * so the file appears last and whole, and the node disappears first. */
static void show_capability(int root, const char *folder, uint32_t minor) {
    char access[160], aside[160], node[64], text[96];
    snprintf(access, sizeof access, "%s/access", folder);
    if (faccessat(root, access, F_OK, 0) == 0) return;
    mkdirat(root, folder, 0555);
    snprintf(node, sizeof node, "dev/nvidia-caps/nvidia-cap%u", minor);
    if (state->plain_nodes || mknodat(root, node, S_IFCHR | 0444, makedev(state->caps_major, minor))) {
        int fd = openat(root, node, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
        if (fd >= 0) close(fd);
    } else {
        fchmodat(root, node, 0444, 0);
    }
    snprintf(aside, sizeof aside, "%s/.access", folder);
    int length = snprintf(text, sizeof text, "DeviceFileMinor: %u\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor);
    int fd = openat(root, aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd < 0) return;
    int written = write(fd, text, (size_t)length) == length;
    close(fd);
    if (written) renameat(root, aside, root, access);
}

static void hide_capability(int root, const char *folder, uint32_t minor) {
    char path[160];
    if (faccessat(root, folder, F_OK, 0)) return;
    snprintf(path, sizeof path, "dev/nvidia-caps/nvidia-cap%u", minor);
    unlinkat(root, path, 0);
    snprintf(path, sizeof path, "%s/access", folder);
    unlinkat(root, path, 0);
    snprintf(path, sizeof path, "%s/.access", folder);
    unlinkat(root, path, 0);
    unlinkat(root, folder, AT_REMOVEDIR);
}

/* `known`: what the tree shows now, or NULL where that must be looked up. */
static void sync_instance(int root, uint32_t gpu, uint32_t gi, const struct gpu_instance *known,
                          const struct gpu_instance *wanted) {
    char folder[96], compute[128];
    uint32_t minor = FIRST_MINOR + MINORS_PER_GPU * gpu + MINORS_PER_INSTANCE * gi;
    snprintf(folder, sizeof folder, "proc/driver/nvidia/capabilities/gpu%u/mig/gi%u", gpu, gi);
    int shown = known ? (int)known->used : faccessat(root, folder, F_OK, 0) == 0;
    if (!wanted->used && !shown) return;
    if (wanted->used && !(known && known->used)) show_capability(root, folder, minor);
    for (uint32_t ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
        int show = wanted->used && wanted->compute[ci].used;
        if (known && (int)(known->used && known->compute[ci].used) == show) continue;
        snprintf(compute, sizeof compute, "%s/ci%u", folder, ci);
        if (show)
            show_capability(root, compute, minor + 1 + ci);
        else if (shown)
            hide_capability(root, compute, minor + 1 + ci);
    }
    if (!wanted->used) hide_capability(root, folder, minor);
}

void tree_sync(int root, uint32_t index, int certain) {
    struct gpu *gpu = &state->gpus[index];
    uint32_t generation = gpu->generation;
    const struct changing *now = &gpu->slots[generation & 1];
    /* The other slot still holds what was before this generation. */
    const struct changing *before = certain ? &gpu->slots[(generation + 1) & 1] : NULL;
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++)
        sync_instance(root, gpu->fixed.minor, gi, before ? &before->instances[gi] : NULL, &now->instances[gi]);
    __atomic_store_n(&gpu->in_tree, generation, __ATOMIC_RELEASE);
}
