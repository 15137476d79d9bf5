/* What the kernel driver shows of instances: /proc/driver/nvidia/capabilities and the nodes in /dev/nvidia-caps. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "state.h"

/* What an instance shows depends on its place alone, and the next one there shows the same. So what is hidden is kept
 * aside: the kernel's own entries cost a program nothing, and a rename is the least that files can cost. */
#define ASIDE "run/nvidia-simulator/hidden"

struct capability {
    char folder[128], node[64], hidden_folder[64], hidden_node[64];
    uint32_t minor;
};

static void find_paths(struct capability *found, const char *folder, uint32_t minor) {
    found->minor = minor;
    snprintf(found->folder, sizeof found->folder, "%s", folder);
    snprintf(found->node, sizeof found->node, "dev/nvidia-caps/nvidia-cap%u", minor);
    snprintf(found->hidden_folder, sizeof found->hidden_folder, ASIDE "/%u", minor);
    snprintf(found->hidden_node, sizeof found->hidden_node, ASIDE "/nvidia-cap%u", minor);
}

static void make_node(int root, const struct capability *made) {
    if (state->plain_nodes || mknodat(root, made->node, S_IFCHR | 0444, makedev(state->caps_major, made->minor))) {
        int fd = openat(root, made->node, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
        if (fd >= 0) close(fd);
    } else {
        fchmodat(root, made->node, 0444, 0);
    }
}

static void make_folder(int root, const struct capability *made) {
    char access[160], aside[160], text[96];
    snprintf(access, sizeof access, "%s/access", made->folder);
    snprintf(aside, sizeof aside, "%s/.access", made->folder);
    mkdirat(root, made->folder, 0555);
    int length = snprintf(text, sizeof text, "DeviceFileMinor: %u\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
                          made->minor);
    int fd = openat(root, aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd < 0) return;
    int written = write(fd, text, (size_t)length) == length;
    close(fd);
    if (written) renameat(root, aside, root, access);
}

/* A client may be killed between any two calls. Whoever repairs the tree goes by the `access` file and its folder:
 * so the file appears last and whole, and the node disappears first. */
static void show_capability(int root, const char *folder, uint32_t minor) {
    char access[160];
    struct capability shown;
    find_paths(&shown, folder, minor);
    snprintf(access, sizeof access, "%s/access", folder);
    if (faccessat(root, access, F_OK, 0) == 0) return;
    if (renameat(root, shown.hidden_node, root, shown.node)) make_node(root, &shown);
    if (renameat(root, shown.hidden_folder, root, folder)) make_folder(root, &shown);
}

static void hide_capability(int root, const char *folder, uint32_t minor) {
    char access[160], unfinished[160];
    struct capability hidden;
    if (faccessat(root, folder, F_OK, 0)) return;
    find_paths(&hidden, folder, minor);
    snprintf(access, sizeof access, "%s/access", folder);
    if (renameat(root, hidden.node, root, hidden.hidden_node)) unlinkat(root, hidden.node, 0);
    if (faccessat(root, access, F_OK, 0) == 0 && renameat(root, folder, root, hidden.hidden_folder) == 0) return;
    unlinkat(root, access, 0);
    snprintf(unfinished, sizeof unfinished, "%s/.access", folder);
    unlinkat(root, unfinished, 0);
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
