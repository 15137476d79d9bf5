/* Shared by the two halves of MIG. */
#ifndef MIG_H
#define MIG_H

#include "library.h"

#define GPU_INSTANCE_PROFILE_COUNT 0x11     /* as driver 580; later ones know 0x11, 3 slices with graphics */
#define COMPUTE_INSTANCE_PROFILE_COUNT 0x9  /* nvml.h NVML_COMPUTE_INSTANCE_PROFILE_COUNT */
#define COMPUTE_ENGINE_PROFILE_COUNT 0x1    /* nvml.h NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_COUNT: shared only */

const struct profile *profile_by_id(const struct fixed *fixed, unsigned id);

/* A process runs on this GPU instance, or on this compute instance of it. */
int instance_in_use(const struct changing *now, uint32_t gi, uint32_t ci);

/* `1g.10gb`, or `2c.3g.40gb` where the compute instance is smaller than its GPU instance. */
void name_compute_instance(const struct profile *p, uint32_t slices, char *name, unsigned length);

/* Multiprocessors of a compute instance of this NVML_COMPUTE_INSTANCE_PROFILE_* in a GPU instance of profile `p`. */
uint32_t compute_multiprocessors(const struct fixed *fixed, const struct profile *p, uint32_t profile);

#endif
