/* Finding, mapping and changing the node's state. See state.h for how a change stays whole. */
#define _GNU_SOURCE
#include "state.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "nvml_abi.h"

#define STATE_NAME "libnvidia-simulator.so." DRIVER_VERSION
#define LIBRARIES "usr/lib/x86_64-linux-gnu"
#define MARKER ".nvidia-simulator" /* holds the install id: this tree is the node's own, and no container's */

struct state *state;
static struct stat mapped_file;
static char library_folder[PATH_MAX];
static int root_fd = -1;  /* the node's own driver root; -1 inside a workload */
static int file_writable; /* the state file can be opened for writing, through root_fd */

/* The folder that holds this library (or, for the static tool, the libraries of the same root). */
static int find_library_folder(char *folder) {
    char path[PATH_MAX];
#ifdef STATIC_TOOL
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    path[length > 0 ? length : 0] = 0;
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash : path, slash ? "/../../" LIBRARIES : "/" LIBRARIES); /* without /proc: the usual place */
    return realpath(path, folder) ? 0 : -1;
#else
    Dl_info info;
    if (!dladdr((void *)find_library_folder, &info) || !realpath(info.dli_fname, path)) return -1;
    char *slash = strrchr(path, '/');
    if (!slash) return -1;
    *slash = 0;
    strcpy(folder, path);
    return 0;
#endif
}

static int is_own_root(const char *root) {
    char path[PATH_MAX + 64], id[sizeof state->install_id] = "";
    snprintf(path, sizeof path, "%s/%s", root, MARKER);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, id, sizeof id - 1);
    close(fd);
    return length > 0 && !strncmp(id, state->install_id, strlen(state->install_id));
}

/* The real driver is in the kernel and does not care how its files are mounted. A privileged client that sees the
 * driver root read-only may therefore change hardware: a detached writable clone of the mount stands for that. */
static int open_root(const char *root) {
    char probe[PATH_MAX + 64];
    int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    snprintf(probe, sizeof probe, "%s/" LIBRARIES "/" STATE_NAME, root);
    if (fd < 0 || access(probe, W_OK) == 0 || errno != EROFS) return fd;
#ifdef SYS_open_tree
    int clone = (int)syscall(SYS_open_tree, AT_FDCWD, root, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (clone < 0) return fd;
    struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
    if (syscall(SYS_mount_setattr, clone, "", AT_EMPTY_PATH, &writable, sizeof writable) == 0) {
        close(fd);
        return clone;
    }
    close(clone);
#endif
    return fd;
}

static void find_root(void) {
    char root[PATH_MAX];
    size_t length = strlen(library_folder), tail = strlen("/" LIBRARIES);
    strcpy(root, state->root);
    if (length >= tail && !strcmp(library_folder + length - tail, "/" LIBRARIES))
        snprintf(root, sizeof root, "%.*s/", (int)(length - tail), library_folder);
    if (!is_own_root(root)) strcpy(root, state->root);
    root_fd = is_own_root(root) ? open_root(root) : -1;
    file_writable = 0;
    if (root_fd >= 0) {
        int fd = openat(root_fd, LIBRARIES "/" STATE_NAME, O_RDWR | O_CLOEXEC);
        file_writable = fd >= 0;
        if (fd >= 0) close(fd);
    }
}

static int map_file(int fd, int protection) {
    struct stat found;
    if (fstat(fd, &found) || found.st_size < (off_t)(STATE_OFFSET + sizeof *state)) return -1;
    void *memory = mmap(NULL, sizeof *state, protection, MAP_SHARED, fd, STATE_OFFSET);
    if (memory == MAP_FAILED) return -1;
    state = memory;
    mapped_file = found;
    if (memcmp(state->magic, STATE_MAGIC, sizeof state->magic) || state->layout != STATE_LAYOUT ||
        state->size != sizeof *state) {
        munmap(memory, sizeof *state);
        state = NULL;
        return -1;
    }
    return 0;
}

/* Mends what a client that was killed left undone in /proc and /dev. */
static void sync_all(void) {
    for (uint32_t gpu = 0; gpu < state->gpu_count; gpu++)
        if (state->gpus[gpu].in_tree != state->gpus[gpu].generation) {
            struct change change;
            if (change_begin(&change, gpu) == NVML_SUCCESS) change_abort(&change);
        }
}

int state_open(void) {
    char path[PATH_MAX + 64];
    struct stat now;
    if (find_library_folder(library_folder)) return NVML_ERROR_DRIVER_NOT_LOADED;
    snprintf(path, sizeof path, "%s/%s", library_folder, STATE_NAME);
    if (state && !stat(path, &now) && now.st_ino == mapped_file.st_ino && now.st_dev == mapped_file.st_dev) {
        if (file_writable) sync_all();
        return NVML_SUCCESS;
    }
    state_close();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    int failed = map_file(fd, PROT_READ);
    close(fd);
    if (failed) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    find_root();
    if (file_writable) {
        munmap(state, sizeof *state);
        fd = openat(root_fd, LIBRARIES "/" STATE_NAME, O_RDWR | O_CLOEXEC);
        failed = fd < 0 || map_file(fd, PROT_READ | PROT_WRITE);
        if (fd >= 0) close(fd);
        if (failed) return NVML_ERROR_DRIVER_NOT_LOADED;
        fstatat(AT_FDCWD, path, &mapped_file, 0); /* a cloned mount has another st_dev */
        sync_all();
    }
    return NVML_SUCCESS;
}

void state_close(void) {
    if (state) munmap(state, sizeof *state);
    if (root_fd >= 0) close(root_fd);
    state = NULL;
    root_fd = -1;
    file_writable = 0;
}

int state_may_write(void) { return file_writable; }

int state_in_workload(void) { return root_fd < 0; }

static int exists(const char *format, uint32_t number) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, format, number);
    return stat(path, &found) == 0;
}

int state_driver_visible(void) { return !state_in_workload() || access("/dev/nvidiactl", F_OK) == 0; }

int state_gpu_visible(uint32_t gpu) {
    const struct gpu *found = &state->gpus[gpu];
    if (found->slots[found->generation & 1].absent) return 0;
    return !state_in_workload() || exists("/dev/nvidia%u", found->fixed.minor);
}

int state_instance_visible(uint32_t gpu, uint32_t gi, int ci) {
    uint32_t minor = FIRST_MINOR + MINORS_PER_GPU * state->gpus[gpu].fixed.minor + MINORS_PER_INSTANCE * gi;
    if (!state_in_workload()) return 1;
    return exists("/dev/nvidia-caps/nvidia-cap%u", minor) &&
           (ci < 0 || exists("/dev/nvidia-caps/nvidia-cap%u", minor + 1 + (uint32_t)ci));
}

void state_read(uint32_t index, struct changing *out) {
    struct gpu *gpu = &state->gpus[index];
    uint32_t before;
    do {
        before = __atomic_load_n(&gpu->generation, __ATOMIC_ACQUIRE);
        memcpy(out, &gpu->slots[before & 1], sizeof *out);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (__atomic_load_n(&gpu->generation, __ATOMIC_RELAXED) != before);
}

int change_begin(struct change *change, uint32_t index) {
    if (!file_writable) return NVML_ERROR_NO_PERMISSION;
    /* A description of its own for each change: flock then also excludes threads and forked children. */
    change->lock = openat(root_fd, LIBRARIES "/" STATE_NAME, O_RDWR | O_CLOEXEC);
    if (change->lock < 0) return NVML_ERROR_NO_PERMISSION;
    while (flock(change->lock, LOCK_EX))
        if (errno != EINTR) {
            close(change->lock);
            return NVML_ERROR_UNKNOWN;
        }
    struct gpu *gpu = &state->gpus[index];
    if (gpu->in_tree != gpu->generation) tree_sync(root_fd, index, 0);
    change->gpu = index;
    change->next = &gpu->slots[(gpu->generation + 1) & 1];
    memcpy(change->next, &gpu->slots[gpu->generation & 1], sizeof *change->next);
    return NVML_SUCCESS;
}

void change_commit(struct change *change) {
    struct gpu *gpu = &state->gpus[change->gpu];
    __atomic_store_n(&gpu->generation, gpu->generation + 1, __ATOMIC_RELEASE);
    tree_sync(root_fd, change->gpu, 1);
    close(change->lock);
}

void change_abort(struct change *change) { close(change->lock); }

/* The same call, whatever its version suffix. */
static int same_function(const char *wanted, const char *called) {
    size_t length = strlen(wanted);
    if (strncmp(wanted, called, length)) return 0;
    return !called[length] || (called[length] == '_' && called[length + 1] == 'v') || !strcmp(called + length, "V");
}

int faults_check(const char *function) {
    if (!state->fault_count) return NVML_SUCCESS;
    for (int i = 0; i < MAX_FAULTS; i++) {
        struct fault *fault = &state->faults[i];
        if (!fault->function[0] || !same_function(fault->function, function)) continue;
        if (file_writable) {
            uint32_t skip = __atomic_load_n(&fault->skip, __ATOMIC_RELAXED);
            while (skip && !__atomic_compare_exchange_n(&fault->skip, &skip, skip - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            }
            if (skip) continue;
            uint32_t left = __atomic_load_n(&fault->remaining, __ATOMIC_RELAXED);
            while (left && left != UINT32_MAX &&
                   !__atomic_compare_exchange_n(&fault->remaining, &left, left - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            }
            if (!left) continue;
        } else if (fault->skip || !fault->remaining) {
            continue;
        }
        if (fault->delay_us) usleep(fault->delay_us);
        if (fault->code) return (int)fault->code;
    }
    return NVML_SUCCESS;
}
