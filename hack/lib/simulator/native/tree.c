/* What the kernel driver shows of instances: /proc/driver/nvidia/capabilities and the nodes in /dev/nvidia-caps. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "state.h"

static void show_capability(int root, const char *folder, uint32_t minor) {
    char path[160], text[96];
    snprintf(path, sizeof path, "%s/access", folder);
    if (faccessat(root, path, F_OK, 0) == 0) return;
    mkdirat(root, folder, 0555);
    int length = snprintf(text, sizeof text, "DeviceFileMinor: %u\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor);
    int fd = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd >= 0) {
        if (write(fd, text, (size_t)length) != length) unlinkat(root, path, 0);
        close(fd);
    }
    snprintf(path, sizeof path, "dev/nvidia-caps/nvidia-cap%u", minor);
    if (state->plain_nodes || mknodat(root, path, S_IFCHR | 0444, makedev(state->caps_major, minor))) {
        fd = openat(root, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
        if (fd >= 0) close(fd);
    } else {
        fchmodat(root, path, 0444, 0);
    }
}

static void hide_capability(int root, const char *folder, uint32_t minor) {
    char path[160];
    if (faccessat(root, folder, F_OK, 0)) return;
    snprintf(path, sizeof path, "%s/access", folder);
    unlinkat(root, path, 0);
    unlinkat(root, folder, AT_REMOVEDIR);
    snprintf(path, sizeof path, "dev/nvidia-caps/nvidia-cap%u", minor);
    unlinkat(root, path, 0);
}

void tree_sync(int root, uint32_t index) {
    struct gpu *gpu = &state->gpus[index];
    const struct changing *now = &gpu->slots[gpu->generation & 1];
    char gi_folder[96], ci_folder[128];
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
        const struct gpu_instance *instance = &now->instances[gi];
        uint32_t minor = 3 + 135 * gpu->fixed.minor + 9 * gi;
        snprintf(gi_folder, sizeof gi_folder, "proc/driver/nvidia/capabilities/gpu%u/mig/gi%u", gpu->fixed.minor, gi);
        int shown = faccessat(root, gi_folder, F_OK, 0) == 0;
        if (!instance->used && !shown) continue;
        if (instance->used) show_capability(root, gi_folder, minor);
        for (uint32_t ci = 0; ci < MAX_COMPUTE_INSTANCES; ci++) {
            snprintf(ci_folder, sizeof ci_folder, "%s/ci%u", gi_folder, ci);
            if (instance->used && instance->compute[ci].used)
                show_capability(root, ci_folder, minor + 1 + ci);
            else if (shown)
                hide_capability(root, ci_folder, minor + 1 + ci);
        }
        if (!instance->used) hide_capability(root, gi_folder, minor);
    }
    __atomic_store_n(&gpu->in_tree, gpu->generation, __ATOMIC_RELEASE);
}
