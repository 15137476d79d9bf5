/* How the parts of the tree are drawn; `folder` is below the driver root. */
#ifndef SIMULATOR_TREE_H
#define SIMULATOR_TREE_H

#include "state.h"

#define KFD "sys/devices/virtual/kfd/kfd"

/* Write `<folder>/<name>`; the text is printf-like. */
__attribute__((format(printf, 3, 4))) void put(const char *folder, const char *name, const char *format, ...);

/* Folders that are numbered from 0: those from `count` on are of an earlier state. */
void take_surplus(const char *folder, uint32_t count);

/* Those that each partition of this GPU has. */
struct link_counts {
    uint32_t io, p2p;
};
struct link_counts count_links(const struct state *state, uint32_t gpu);
void draw_links(const struct state *state);

#endif
