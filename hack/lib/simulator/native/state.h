/* What a simulated node is: one file, mapped into every client.
 *
 * The file is a valid (empty) ELF shared object, so that driver-library tooling takes it for one; the state starts at
 * STATE_OFFSET. `layout.py` writes the same layout: sizes are checked when the file is opened.
 *
 * Writers hold flock(LOCK_EX). Each GPU's changing part has two slots; `generation & 1` says which one is valid. A
 * change is written into the other slot and becomes visible by one store to `generation`, so a client killed at any
 * instruction leaves the old state or the new one, and readers need no lock.
 */
#ifndef STATE_H
#define STATE_H

#include <stdint.h>

#define STATE_OFFSET 16384
#define STATE_MAGIC "nvidia-simulator"
#define STATE_LAYOUT 1

#define MAX_GPUS 32
#define MAX_GPU_INSTANCES 15    /* gi0..gi14: the ids that NVIDIA's capability minors leave room for */
#define MAX_COMPUTE_INSTANCES 8 /* ci0..ci7, likewise */
#define MAX_PROFILES 20
#define MAX_STARTS 8
#define MAX_PROCESSES 16
#define MAX_EVENTS 256
#define MAX_FAULTS 32

struct profile {
    uint32_t slot; /* NVML_GPU_INSTANCE_PROFILE_*: what look-ups take */
    uint32_t id;   /* what creation takes */
    uint32_t slices;
    uint32_t max_instances;
    uint32_t multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines;
    uint32_t capabilities; /* bit 0 peer to peer, bit 1 graphics */
    uint32_t size;         /* memory slices that an instance occupies */
    uint32_t start_count;
    uint32_t starts[MAX_STARTS];    /* ascending */
    uint32_t preferred[MAX_STARTS]; /* the order in which a creation without placement tries them */
    uint32_t reserved;
    uint64_t memory_mib;
    char name[48];
};

struct fixed {
    char name[96];
    char uuid[80];
    char serial[32];
    char board_part_number[32];
    char vbios[32];
    uint8_t chassis_serial[16];
    uint32_t minor, module_id, slot_number, tray_index;
    uint32_t pci_domain, pci_bus, pci_device, pci_device_id, pci_subsystem_id;
    int32_t numa_node;
    uint32_t architecture, brand, compute_major, compute_minor, cores, multiprocessors;
    uint32_t copy_engines, decoders, encoders, jpeg_engines, ofa_engines;
    uint32_t mig_capable, mode_change_needs_reset, mode_survives_reboot;
    uint32_t memory_slices, max_mig_devices, profile_count;
    uint32_t has_fabric, nvlinks, nvlink_version, addressing_mode;
    uint32_t pcie_generation, pcie_width, max_sm_clock_mhz, max_memory_clock_mhz, memory_bus_bits, power_limit_mw;
    uint64_t memory_bytes, reserved_bytes, bar1_bytes;
    struct profile profiles[MAX_PROFILES];
};

struct compute_instance {
    uint32_t used, slices, start, profile_id;
    char uuid[48];
};

struct gpu_instance { /* its id is its index */
    uint32_t used, profile, start, reserved;
    struct compute_instance compute[MAX_COMPUTE_INSTANCES];
};

enum { PROCESS_COMPUTE, PROCESS_GRAPHICS, PROCESS_MPS }; /* which of NVML's lists shows it */

struct process {
    uint32_t pid, gpu_instance, compute_instance, type; /* instances 0xFFFFFFFF: the whole GPU */
    uint64_t memory_bytes;
};

struct changing {
    uint32_t mig_current, mig_pending, lost, absent; /* absent: not in the machine (any more) */
    uint32_t persistence, compute_mode, timeslice, process_count;
    uint32_t fabric_state, fabric_status, fabric_clique, fabric_health_mask, fabric_health_summary, reserved;
    uint8_t fabric_cluster[16];
    struct process processes[MAX_PROCESSES];
    struct gpu_instance instances[MAX_GPU_INSTANCES];
};

struct gpu {
    struct fixed fixed;
    uint32_t generation;
    uint32_t in_tree; /* the generation whose instances /proc and /dev show */
    struct changing slots[2];
};

struct event {
    uint64_t type, data;
    uint32_t gpu, gpu_instance, compute_instance, reserved;
};

struct fault {
    char function[64]; /* empty: unused */
    uint32_t skip;     /* calls that pass first */
    uint32_t remaining; /* calls that it then hits; 0xFFFFFFFF: all */
    uint32_t code;     /* what they return; 0: they go on after the delay */
    uint32_t delay_us;
};

struct state {
    char magic[16];
    uint32_t layout, size, gpu_count, caps_major;
    uint32_t plain_nodes; /* device nodes are plain files: the installer might not make real ones */
    uint32_t cuda_version, fault_count, event_count; /* event_count is also the futex that waiters sleep on */
    char install_id[40];
    char root[256]; /* as the installer saw it */
    char node[64];
    char spec[128];
    char driver_version[32];
    struct fault faults[MAX_FAULTS];
    struct event events[MAX_EVENTS];
    struct gpu gpus[MAX_GPUS];
};

_Static_assert(sizeof(struct profile) == 176, "layout.py: Profile");
_Static_assert(sizeof(struct event) == 32 && sizeof(struct fault) == 80 && sizeof(struct process) == 24, "layout.py");

/* Access, in state.c. Functions that return a code return an nvmlReturn_t. */
extern struct state *state;

int state_open(void); /* maps the node's state; again when the file was replaced */
void state_close(void);
int state_may_write(void);      /* this client may change hardware */
int state_in_workload(void);    /* this client sees the devices that were injected, not the node */
int state_driver_visible(void);  /* the control node is there */
int state_gpu_visible(uint32_t gpu);
int state_instance_visible(uint32_t gpu, uint32_t gi, int ci);
void state_read(uint32_t gpu, struct changing *out);

/* A change: begin (locks; `next` starts as a copy of what is), then commit or abort. */
struct change {
    int lock;
    uint32_t gpu;
    struct changing *next;
};
int change_begin(struct change *change, uint32_t gpu);
void change_commit(struct change *change);
void change_abort(struct change *change);

int faults_check(const char *function);

/* Capability minors, as in mig-minors: config 1, monitor 2, then 135 a GPU, 9 a GPU instance: itself, its 8 CIs. */
enum { FIRST_MINOR = 3, MINORS_PER_GPU = 135, MINORS_PER_INSTANCE = 9 };

/* The /proc and /dev side of instances, in tree.c. `certain` is 0 where a client may have died while it changed them. */
void tree_sync(int root, uint32_t gpu, int certain);

#endif
