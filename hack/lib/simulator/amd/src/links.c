/* KFD's links between nodes: `io_links/K` by PCIe and XGMI, `p2p_links/K` between GPUs of different hives over PCIe.
 *
 * Sixty-four partitions have some four thousand of them, so they are drawn where they are asked for (`kfd_links`),
 * when the topology has changed. Weights and the bandwidth inside a GPU are of captures; the other bandwidths are assumptions. */
#include "tree.h"

#include <stdio.h>

enum { PCIE = 2, XGMI = 11 }; /* linux/drivers/gpu/drm/amd/amdkfd/kfd_crat.h CRAT_IOLINK_TYPE_* */
enum { TO_HOST = 20, WITHIN_GPU = 13, ACROSS_GPUS = 41, ACROSS_MI210 = 15 }; /* weights */
enum { BANDWIDTH_WITHIN_GPU = 819200, BANDWIDTH_ACROSS = 64000 };            /* MB/s */

static void draw_link(const char *folder, uint32_t number, uint32_t from, uint32_t to, int type, int weight,
                      int bandwidth)
{
    char link[200];
    snprintf(link, sizeof link, "%s/%u", folder, number);
    put(link, "properties",
        "type %d\nversion_major 0\nversion_minor 0\nnode_from %u\nnode_to %u\nweight %d\nmin_latency 0\n"
        "max_latency 0\nmin_bandwidth 0\nmax_bandwidth %d\nrecommended_transfer_size 0\n"
        "recommended_sdma_engine_id_mask 0\nflags 0\n",
        type, from, to, weight, bandwidth);
}

static int is_linked(const struct state *state, uint32_t one, uint32_t other)
{
    return one == other || (state->gpus[one].hive_id && state->gpus[one].hive_id == state->gpus[other].hive_id);
}

struct link_counts count_links(const struct state *state, uint32_t gpu)
{
    struct link_counts counts = {.io = 1, .p2p = 0};
    for (uint32_t other = 0; other < state->gpu_count; other++) {
        uint32_t partitions = partition_count(&state->gpus[other]) - (other == gpu);
        *(is_linked(state, gpu, other) ? &counts.io : &counts.p2p) += partitions;
    }
    return counts;
}

/* From one partition to its host and to all others. */
static void draw_links_from(const struct state *state, uint32_t gpu, uint32_t partition)
{
    char io[160], p2p[160];
    uint32_t from = kfd_node(state, gpu, partition), io_count = 0, p2p_count = 0;
    int across = state->gpus[gpu].xcc_count ? ACROSS_GPUS : ACROSS_MI210;
    snprintf(io, sizeof io, KFD "/topology/nodes/%u/io_links", from);
    snprintf(p2p, sizeof p2p, KFD "/topology/nodes/%u/p2p_links", from);
    draw_link(io, io_count++, from, state->gpus[gpu].numa_node, PCIE, TO_HOST, BANDWIDTH_ACROSS);
    for (uint32_t other = 0; other < state->gpu_count; other++)
        for (uint32_t p = 0; p < partition_count(&state->gpus[other]); p++) {
            uint32_t to = kfd_node(state, other, p);
            if (to == from)
                continue;
            if (other == gpu)
                draw_link(io, io_count++, from, to, XGMI, WITHIN_GPU, BANDWIDTH_WITHIN_GPU);
            else if (is_linked(state, gpu, other))
                draw_link(io, io_count++, from, to, XGMI, across, BANDWIDTH_ACROSS);
            else
                draw_link(p2p, p2p_count++, from, to, PCIE, 2 * TO_HOST, BANDWIDTH_ACROSS);
        }
    take_surplus(io, io_count);
    take_surplus(p2p, p2p_count);
}

/* A CPU's links to the GPUs that are plugged in beside it. */
static void draw_links_of_cpu(const struct state *state, uint32_t cpu)
{
    char io[160];
    uint32_t count = 0;
    snprintf(io, sizeof io, KFD "/topology/nodes/%u/io_links", cpu);
    for (uint32_t i = 0; i < state->gpu_count; i++)
        for (uint32_t p = 0; state->gpus[i].numa_node == cpu && p < partition_count(&state->gpus[i]); p++)
            draw_link(io, count++, cpu, kfd_node(state, i, p), PCIE, TO_HOST, BANDWIDTH_ACROSS);
    take_surplus(io, count);
}

void draw_links(const struct state *state)
{
    for (uint32_t cpu = 0; cpu < state->cpu_nodes; cpu++)
        draw_links_of_cpu(state, cpu);
    for (uint32_t i = 0; i < state->gpu_count; i++)
        for (uint32_t p = 0; p < partition_count(&state->gpus[i]); p++)
            draw_links_from(state, i, p);
}
