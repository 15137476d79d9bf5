/*
 * nvidia-simulator-mount ROOT [PREFIX]: lays the /proc and /sys of a simulated driver over those below PREFIX, in this
 * mount namespace, for programs that look for what the kernel shows of a driver at its fixed paths, as NVIDIA's own do.
 * Nothing happens for a node without GPUs, nor the second time.
 *
 * nvidia-simulator-mount ROOT -: the same for a container that is being created, as an OCI hook `createContainer` (OCI
 * runtime specification 1.0, its state on standard input): on a real node, the driver shows in every container. What
 * cannot be shown there (in a user namespace, say) is left out.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *path) {
    fprintf(stderr, "nvidia-simulator-mount: %s: %s\n", path, strerror(errno));
    return 1;
}

static int bind(const char *root, const char *prefix, const char *path, int readonly) {
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(from, sizeof from, "%s%s", root, path);
    snprintf(to, sizeof to, "%s%s", prefix, path);
    if (mount(from, to, NULL, MS_BIND, NULL) != 0) return fail(to);
    unsigned long flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    return readonly && mount(NULL, to, NULL, flags, NULL) != 0 ? fail(to) : 0;
}

static int show(const char *root, const char *prefix, int readonly) {
    char path[PATH_MAX], layers[2 * PATH_MAX];
    struct stat status;
    snprintf(path, sizeof path, "%s/proc/driver", root);
    if (stat(path, &status) != 0) return 0;
    snprintf(path, sizeof path, "%s/proc/driver/nvidia", prefix);
    if (stat(path, &status) == 0) return 0;
    if (bind(root, prefix, "/proc/devices", readonly) != 0) return 1;
    snprintf(path, sizeof path, "%s/sys/devices", prefix);
    if (stat(path, &status) == 0) {
        snprintf(layers, sizeof layers, "lowerdir=%s/sys/devices:%s", root, path);
        if (mount("devices", path, "overlay", MS_RDONLY, layers) != 0) return fail(path);
        if (bind(root, prefix, "/sys/bus/pci/devices", readonly) != 0) return 1;
    }
    return bind(root, prefix, "/proc/driver", readonly); /* last: it says that all is done */
}

/* The root of the container that the state on standard input is about; containerd has it in the bundle. */
static int read_rootfs(char *rootfs, size_t size) {
    static char state[1 << 16];
    static const char key[] = "\"bundle\":\"";
    size_t length = fread(state, 1, sizeof state - 1, stdin);
    state[length] = 0;
    char *start = strstr(state, key);
    char *end = start ? strchr(start + sizeof key - 1, '"') : NULL;
    if (!end) return 1;
    *end = 0;
    snprintf(rootfs, size, "%s/rootfs", start + sizeof key - 1);
    return 0;
}

int main(int argc, char **argv) {
    char rootfs[PATH_MAX];
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: nvidia-simulator-mount ROOT [PREFIX|-]\n");
        return 2;
    }
    if (argc == 2 || strcmp(argv[2], "-") != 0) return show(argv[1], argc == 3 ? argv[2] : "", 0);
    if (read_rootfs(rootfs, sizeof rootfs) == 0) show(argv[1], rootfs, 1);
    return 0;
}
