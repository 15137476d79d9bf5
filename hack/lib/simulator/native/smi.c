/* nvidia-smi: the part of the tool that drivers, scripts and tests use. Statically linked with the simulated library,
 * so that it runs in a container that has nothing but it and the state file. */
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "library.h"
#include "mig.h"

nvmlReturn_t nvmlInit_v2(void);
const char *nvmlErrorString(nvmlReturn_t code);
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device);
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device);
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found);
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length);
nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned mode, nvmlReturn_t *activation);
nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, unsigned mode);
nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned mode);
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci);
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory);
nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance);
nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned id,
                                                      const nvmlGpuInstancePlacement_t *placement,
                                                      nvmlGpuInstance_t *instance);
nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance, unsigned profile,
                                                  nvmlComputeInstance_t *created);
nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance);
nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t instance);

enum { MODE_OFF, MODE_ON };

static const char *selected; /* -i: index, UUID or bus id; NULL: every GPU */

static int fail(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, nvmlErrorString(code));
    return code;
}

/* Runs `action` on each selected GPU; stops at the first failure. */
static int for_gpus(int (*action)(nvmlDevice_t device, const char *argument), const char *argument) {
    for (uint32_t i = 0; i < visible_gpu_count; i++) {
        nvmlDevice_t device = &gpu_handles[visible_gpus[i]], named = NULL;
        if (selected) {
            char *end;
            unsigned long index = strtoul(selected, &end, 10);
            if (*selected && !*end) {
                if (index != i) continue;
            } else {
                if (nvmlDeviceGetHandleByUUID(selected, &named)) nvmlDeviceGetHandleByPciBusId_v2(selected, &named);
                if (!named || named->gpu != device->gpu) continue;
            }
        }
        int result = action(device, argument);
        if (result || selected) return result;
    }
    if (selected) fprintf(stderr, "No devices were found: %s\n", selected);
    return selected ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}

static uint32_t index_of(nvmlDevice_t device) {
    uint32_t index = 0;
    while (visible_gpus[index] != device->gpu) index++;
    return index;
}

static int list(nvmlDevice_t device, const char *argument) {
    struct changing now;
    nvmlDevice_t mig;
    char uuid[96], name[64];
    (void)argument;
    const struct fixed *fixed = fixed_of(device);
    state_read(device->gpu, &now);
    if (now.lost) {
        printf("Unable to determine the device handle for gpu %08X:%02X:%02X.0: GPU is lost. Reboot the system to recover this GPU\n",
               fixed->pci_domain, fixed->pci_bus, fixed->pci_device);
        return NVML_SUCCESS;
    }
    printf("GPU %u: %s (UUID: %s)\n", index_of(device), fixed->name, fixed->uuid);
    for (unsigned i = 0; i < fixed->max_mig_devices; i++) {
        if (nvmlDeviceGetMigDeviceHandleByIndex(device, i, &mig) || nvmlDeviceGetUUID(mig, uuid, sizeof uuid)) continue;
        const struct gpu_instance *instance = &now.instances[mig->gi];
        name_compute_instance(&fixed->profiles[instance->profile], instance->compute[mig->ci].slices, name, sizeof name);
        printf("  MIG %-15s Device %2u: (UUID: %s)\n", name, i, uuid);
    }
    return NVML_SUCCESS;
}

static int query(nvmlDevice_t device, const char *argument) {
    struct changing now;
    nvmlMemory_t memory;
    static const char *const WORDS[] = {"Disabled", "Enabled"};
    (void)argument;
    const struct fixed *fixed = fixed_of(device);
    state_read(device->gpu, &now);
    printf("GPU %08X:%02X:%02X.0\n", fixed->pci_domain, fixed->pci_bus, fixed->pci_device);
    printf("    Product Name                          : %s\n    GPU UUID                              : %s\n", fixed->name, fixed->uuid);
    printf("    Minor Number                          : %u\n    Serial Number                         : %s\n", fixed->minor, fixed->serial);
    printf("    Persistence Mode                      : %s\n", WORDS[now.persistence & 1]);
    if (fixed->mig_capable)
        printf("    MIG Mode\n        Current                           : %s\n        Pending                           : %s\n",
               WORDS[now.mig_current & 1], WORDS[now.mig_pending & 1]);
    if (!nvmlDeviceGetMemoryInfo(device, &memory))
        printf("    FB Memory Usage\n        Total                             : %llu MiB\n        Used                              : %llu MiB\n",
               memory.total >> 20, memory.used >> 20);
    if (fixed->has_fabric) {
        printf("    Fabric\n        State                             : %s\n        CliqueId                          : %u\n        ClusterUUID                       : ",
               now.fabric_state == 3 ? "Completed" : "In Progress", now.fabric_clique);
        for (int i = 0; i < 16; i++) printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", now.fabric_cluster[i]);
        printf("\n");
    }
    return NVML_SUCCESS;
}

static int set_mig(nvmlDevice_t device, const char *mode) {
    nvmlReturn_t activation;
    const struct fixed *fixed = fixed_of(device);
    int on = atoi(mode) == MODE_ON, result = nvmlDeviceSetMigMode(device, on ? MODE_ON : MODE_OFF, &activation);
    if (result) return fail("Unable to set MIG mode", result);
    if (activation)
        printf("Warning: MIG mode is in pending %s state for GPU %08X:%02X:%02X.0: %s\n", on ? "enable" : "disable",
               fixed->pci_domain, fixed->pci_bus, fixed->pci_device, nvmlErrorString(activation));
    else
        printf("%s MIG Mode for GPU %08X:%02X:%02X.0\n", on ? "Enabled" : "Disabled", fixed->pci_domain,
               fixed->pci_bus, fixed->pci_device);
    return NVML_SUCCESS;
}

static int set_compute_mode(nvmlDevice_t device, const char *mode) {
    static const char *const NAMES[] = {"DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS"};
    for (unsigned i = 0; i < 4; i++)
        if (!strcasecmp(mode, NAMES[i]) || (mode[0] == (char)('0' + i) && !mode[1])) {
            int result = nvmlDeviceSetComputeMode(device, i);
            if (result) return fail("Unable to set compute mode", result);
            printf("Set compute mode to %s for GPU %u.\n", NAMES[i], index_of(device));
            return NVML_SUCCESS;
        }
    return fail(mode, NVML_ERROR_INVALID_ARGUMENT);
}

static int set_persistence(nvmlDevice_t device, const char *mode) {
    int result = nvmlDeviceSetPersistenceMode(device, (unsigned)atoi(mode));
    return result ? fail("Unable to set persistence mode", result) : NVML_SUCCESS;
}

static int set_timeslice(nvmlDevice_t device, const char *interval) {
    struct change change;
    unsigned value = (unsigned)atoi(interval);
    int result = value > 3 ? NVML_ERROR_INVALID_ARGUMENT : change_begin(&change, device->gpu);
    if (result) return fail("Unable to set the time-slice", result);
    change.next->timeslice = value;
    change_commit(&change);
    printf("Successfully set timeslice for GPU %u to %u.\n", index_of(device), value);
    return NVML_SUCCESS;
}

static int list_policy(nvmlDevice_t device, const char *argument) {
    static const char *const WORDS[] = {"Default", "Short", "Medium", "Long"};
    struct changing now;
    (void)argument;
    state_read(device->gpu, &now);
    printf("GPU %u: timeslice %s\n", index_of(device), WORDS[now.timeslice & 3]);
    return NVML_SUCCESS;
}

/* -lgip, -lgi: one line each. */
static int list_profiles(nvmlDevice_t device, const char *argument) {
    const struct fixed *fixed = fixed_of(device);
    (void)argument;
    for (uint32_t i = 0; i < fixed->profile_count; i++) {
        const struct profile *p = &fixed->profiles[i];
        printf("%3u  MIG %-14s %3u  x%u  %8.2f GiB  %3u SM\n", index_of(device), p->name, p->id, p->max_instances,
               (double)p->memory_mib / 1024, p->multiprocessors);
    }
    return NVML_SUCCESS;
}

static int list_instances(nvmlDevice_t device, const char *argument) {
    struct changing now;
    (void)argument;
    state_read(device->gpu, &now);
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
        const struct profile *p = &fixed_of(device)->profiles[now.instances[gi].profile];
        if (now.instances[gi].used)
            printf("%3u  MIG %-14s %3u  %3u  %u:%u\n", index_of(device), p->name, p->id, gi, now.instances[gi].start, p->size);
    }
    return NVML_SUCCESS;
}

static int with_compute_instances;

static int create_one(nvmlDevice_t device, char *wanted) {
    nvmlGpuInstance_t instance;
    nvmlComputeInstance_t compute;
    const struct fixed *fixed = fixed_of(device);
    char *start = strchr(wanted, ':');
    if (start) *start++ = 0;
    for (uint32_t i = 0; i < fixed->profile_count; i++) {
        const struct profile *p = &fixed->profiles[i];
        char *end;
        int by_id = strtoul(wanted, &end, 10) == p->id && !*end;
        if (!by_id && strcasecmp(wanted, p->name)) continue;
        nvmlGpuInstancePlacement_t placement = {start ? (unsigned)atoi(start) : 0, p->size};
        int result = start ? nvmlDeviceCreateGpuInstanceWithPlacement(device, p->id, &placement, &instance)
                           : nvmlDeviceCreateGpuInstance(device, p->id, &instance);
        if (result) return fail("Unable to create a GPU instance", result);
        printf("Successfully created GPU instance ID %2u on GPU %2u using profile MIG %s (ID %2u)\n", instance->gi,
               index_of(device), p->name, p->id);
        static const unsigned WHOLE[] = {0, 0, 1, 2, 3, 0, 6, 4, 5}; /* slices -> profile of that many */
        if (with_compute_instances && (result = nvmlGpuInstanceCreateComputeInstance(instance, WHOLE[p->slices], &compute)))
            return fail("Unable to create a compute instance", result);
        return NVML_SUCCESS;
    }
    return fail(wanted, NVML_ERROR_INVALID_ARGUMENT);
}

static int create_instances(nvmlDevice_t device, const char *wanted) {
    char text[256], *rest, *part;
    snprintf(text, sizeof text, "%s", wanted);
    for (part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        int result = create_one(device, part);
        if (result) return result;
    }
    return NVML_SUCCESS;
}

/* -dci destroys compute instances, -dgi GPU instances: all of them. */
static int destroy_instances(nvmlDevice_t device, const char *what) {
    struct changing now;
    state_read(device->gpu, &now);
    for (uint32_t gi = 0; gi < MAX_GPU_INSTANCES; gi++) {
        if (!now.instances[gi].used) continue;
        int result = NVML_SUCCESS;
        for (uint32_t ci = 0; ci < MAX_COMPUTE_INSTANCES && what[2] == 'c' && !result; ci++)
            if (now.instances[gi].compute[ci].used) result = nvmlComputeInstanceDestroy(&ci_handles[device->gpu][gi][ci]);
        if (what[2] == 'g') result = nvmlGpuInstanceDestroy(&gi_handles[device->gpu][gi]);
        if (result) return fail("Unable to destroy instances", result);
    }
    return NVML_SUCCESS;
}

static int usage(void) {
    fprintf(stderr, "nvidia-smi (simulated): -L | -q | --version | [-i GPU] -mig 0|1 | -c MODE | -pm 0|1\n"
                    "  compute-policy [-i GPU] [--set-timeslice=N | --list]\n"
                    "  mig [-i GPU] -lgip | -lgi | -cgi PROFILE[:START],... [-C] | -dci | -dgi\n");
    return 2;
}

static int print_version(void) {
    printf("NVIDIA-SMI version  : %s\nNVML version        : %.7s\nDRIVER version      : %s\nCUDA Version        : %u.%u\n",
           state->driver_version, state->driver_version, state->driver_version, state->cuda_version / 1000,
           state->cuda_version % 1000 / 10);
    return 0;
}

static int summary(void) {
    printf("NVIDIA-SMI %s  Driver Version: %s  CUDA Version: %u.%u  (simulated)\n", state->driver_version,
           state->driver_version, state->cuda_version / 1000, state->cuda_version % 1000 / 10);
    return for_gpus(list, NULL);
}

struct option_action {
    const char *option;
    int takes_value;
    int (*action)(nvmlDevice_t device, const char *argument);
};

static const struct option_action ACTIONS[] = {
    {"-L", 0, list}, {"--list-gpus", 0, list}, {"-q", 0, query}, {"--query", 0, query},
    {"-mig", 1, set_mig}, {"--multi-instance-gpu", 1, set_mig},
    {"-c", 1, set_compute_mode}, {"--compute-mode", 1, set_compute_mode},
    {"-pm", 1, set_persistence}, {"--persistence-mode", 1, set_persistence},
    {"--set-timeslice", 1, set_timeslice}, {"--list", 0, list_policy},
    {"-lgip", 0, list_profiles}, {"-lgi", 0, list_instances}, {"-cgi", 1, create_instances},
    {"-dci", 0, destroy_instances}, {"-dgi", 0, destroy_instances},
};

int main(int count, char **arguments) {
    int (*action)(nvmlDevice_t device, const char *argument) = NULL;
    const char *value = NULL, *option = NULL;
    int result = nvmlInit_v2(), version = 0;
    if (result) {
        printf("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver: %s\n", nvmlErrorString(result));
        return result;
    }
    for (int i = 1; i < count; i++) {
        char *word = arguments[i], *inside = word[0] == '-' ? strchr(word, '=') : NULL;
        if (inside) *inside++ = 0;
        int known = !strcmp(word, "mig") || !strcmp(word, "compute-policy");
        if (!strcmp(word, "--version")) known = version = 1;
        if (!strcmp(word, "-C")) known = with_compute_instances = 1;
        if (!strcmp(word, "-i") || !strcmp(word, "--id")) {
            selected = inside ? inside : i + 1 < count ? arguments[++i] : "";
            known = 1;
        }
        for (size_t a = 0; a < sizeof ACTIONS / sizeof *ACTIONS && !known; a++)
            if (!strcmp(word, ACTIONS[a].option)) {
                action = ACTIONS[a].action;
                option = word;
                known = 1;
                if (ACTIONS[a].takes_value && !(value = inside ? inside : i + 1 < count ? arguments[++i] : NULL)) return usage();
            }
        if (!known) return usage();
    }
    if (version) return print_version();
    if (!action) return summary();
    return for_gpus(action, value ? value : option);
}
