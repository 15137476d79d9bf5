/* `modprobe [-r] amdgpu` on the simulated node, whose driver root is its own root. */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *why)
{
    fprintf(stderr, "modprobe: FATAL: %s\n", why);
    return 1;
}

static int is_used(const struct state *state)
{
    for (uint32_t i = 0; i < state->gpu_count; i++)
        if (is_busy(&state->gpus[i]))
            return 1;
    return 0;
}

int main(int count, char **words)
{
    int removes = count == 3 && !strcmp(words[1], "-r");
    struct state state;
    if (count != 2 + removes || strcmp(words[count - 1], "amdgpu"))
        return fail("Module not found; there is amdgpu alone.");
    int failed = state_lock(&state);
    if (failed)
        return fail(strerror(failed));
    const char *why = NULL;
    if (removes && is_used(&state)) {
        why = "Module amdgpu is in use.";
    } else if (removes && state.failing_reloads) {
        state.failing_reloads--;
        why = "Module amdgpu is in use.";
    } else if (removes) {
        state.driver_loaded = 0;
    } else if (state.losing_reloads) {
        state.losing_reloads--;
        why = "could not insert 'amdgpu': Input/output error";
    } else if (!state.driver_loaded) {
        load_driver(&state);
    }
    failed = state_store(&state);
    state_unlock();
    if (failed)
        return fail(strerror(failed));
    if (removes && !why)
        usleep(state.reload_pause_ms * 1000); /* who kills a reload in here leaves the driver unloaded */
    return why ? fail(why) : 0;
}
