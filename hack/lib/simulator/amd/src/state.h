/* The truth about the simulated AMD GPUs of one node: one file beside the library, changed under flock.
 *
 * The file holds two copies. A change goes to the older copy, whose sequence and checksum make it the newer one, so
 * a process killed while writing leaves the other copy intact. The sysfs tree and the device nodes are drawn from
 * this state; `rendered` says up to which sequence, and whoever next takes the lock finishes an interrupted drawing. */
#ifndef SIMULATOR_STATE_H
#define SIMULATOR_STATE_H

#include <stdint.h>

#define MAX_GPUS 16
#define STATE_MAGIC 0x3144534d49534d41ull /* "AMSIMSD1" */
#define NO_HOLDER 0
#define UNNAMED_HOLDER (-1)

/* Values as in amdsmi_compute_partition_type_t. */
enum compute_mode { COMPUTE_NONE, SPX, DPX, TPX, QPX, CPX };

struct gpu {
    char bdf[16];       /* 0000:05:00.0 */
    char pcie_root[16]; /* pci0000:00 */
    char product[64];
    uint64_t vram_bytes;
    uint64_t unique_id;
    uint64_t hive_id; /* 0: in no hive */
    uint32_t device_id;
    uint32_t gfx_version; /* 90402: gfx942 */
    uint32_t xcc_count;   /* 0: the model cannot partition */
    uint32_t compute_units;
    uint32_t max_clock_mhz;
    uint32_t numa_node;
    uint32_t memory_modes; /* bit n set: NPS n can be chosen; 1, 2, 4, 8 */
    uint32_t two_io_dies;  /* GC 9.5.0: NPS2 also under QPX and CPX */
    uint32_t apu;          /* memory mode fixed at boot */
    uint32_t compute_mode;
    uint32_t memory_mode;
    uint32_t requested_memory_mode; /* 0: none; effective at the next driver load */
    uint32_t card;                  /* DRM minors of partition 0; partition p has +p */
    uint32_t render;
    int32_t holder; /* pid of a KFD process, UNNAMED_HOLDER, or NO_HOLDER */
    uint32_t reserved;
};

struct state {
    uint64_t magic;
    uint64_t sequence;
    uint64_t rendered;
    uint64_t topology; /* handles of an older topology are invalid */
    char driver_version[32];
    char source_version[32];
    uint32_t driver_loaded;
    uint32_t gpu_count;
    uint32_t cpu_nodes;
    uint32_t kfd_major;
    uint32_t distinct_ids;     /* driver 6.16 on: a unique_id per partition */
    uint32_t failing_reloads;  /* so many reloads to come fail, the driver staying as it was */
    uint32_t losing_reloads;   /* so many reloads to come unload the driver and cannot load it again */
    uint32_t change_pause_ms;  /* how long a change shows itself half done in sysfs */
    uint32_t reload_pause_ms;
    uint32_t dotted_xcp; /* platform devices are amdgpu_xcp.N, as some builds of ROCm 6.4 name them */
    uint32_t kfd_links;  /* KFD shows links between nodes: thousands of files, drawn anew at every change */
    uint32_t reserved;
    uint32_t loading;    /* the driver is to be loaded by whoever next takes the lock */
    uint64_t drawn_topology;
    struct gpu gpus[MAX_GPUS];
    uint64_t checksum; /* FNV-1a of everything before */
};

/* Where `libamd_smi.so` lies: <root>/opt/rocm/lib; for programs that run with the root as theirs, below `/`. */
const char *library_folder(void);
const char *root_folder(void);

/* 0, or an errno. `lock` draws what an interrupted change left undrawn. */
int state_lock(struct state *state);
int state_store(struct state *state);
void state_unlock(void);

/* Draw sysfs and device nodes from the state; without a driver, none of what it shows. */
int render(const struct state *state);

/* The driver loads: requested memory modes take effect and every GPU gets its automatic compute mode. */
void load_driver(struct state *state);

/* What a partition has of one kind of engine: `amount`, each shared by so many partitions. */
struct engines {
    const char *name; /* as in compute_partition_config */
    uint32_t amount, sharing;
};
enum { ENGINE_KINDS = 4 };
void describe_engines(const struct gpu *gpu, uint32_t compute_mode, struct engines engines[ENGINE_KINDS]);

/* Rules of the kernel driver, by model. */
uint32_t partitions_in(const struct gpu *gpu, uint32_t compute_mode); /* 0: not a mode of this model */
int is_compatible(const struct gpu *gpu, uint32_t compute_mode, uint32_t memory_mode);
uint32_t automatic_mode(const struct gpu *gpu, uint32_t memory_mode);
uint32_t partition_count(const struct gpu *gpu);
uint64_t partition_memory(const struct gpu *gpu, uint32_t partition);
uint64_t partition_unique_id(const struct state *state, uint32_t gpu, uint32_t partition);
uint32_t partition_location(const struct gpu *gpu, uint32_t partition);
uint32_t partition_gpu_id(const struct state *state, uint32_t gpu, uint32_t partition);
uint32_t kfd_node(const struct state *state, uint32_t gpu, uint32_t partition);
const char *compute_mode_name(uint32_t mode);
uint32_t bus_of(const struct gpu *gpu);
int is_busy(const struct gpu *gpu);

#endif
