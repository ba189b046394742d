/* Errors and hangs that a test orders. */
#include "stub.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const code_names[] = {
    "SUCCESS", "UNINITIALIZED", "INVALID_ARGUMENT", "NOT_SUPPORTED", "NO_PERMISSION", "ALREADY_INITIALIZED",
    "NOT_FOUND", "INSUFFICIENT_SIZE", "INSUFFICIENT_POWER", "DRIVER_NOT_LOADED", "TIMEOUT", "IRQ_ISSUE",
    "LIBRARY_NOT_FOUND", "FUNCTION_NOT_FOUND", "CORRUPTED_INFOROM", "GPU_IS_LOST", "RESET_REQUIRED",
    "OPERATING_SYSTEM", "LIB_RM_VERSION_MISMATCH", "IN_USE", "MEMORY", "NO_DATA", "VGPU_ECC_NOT_SUPPORTED",
    "INSUFFICIENT_RESOURCES", "FREQ_NOT_SUPPORTED", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED", "NOT_READY",
    "GPU_NOT_FOUND", "INVALID_STATE", "RESET_TYPE_NOT_SUPPORTED",
};
#define CODE_COUNT (sizeof code_names / sizeof *code_names)

bool code_parse(const char *text, nvmlReturn_t *code)
{
    char *end;
    long number = strtol(text, &end, 10);
    if (end != text) {
        *code = (nvmlReturn_t)number;
        return true;
    }
    size_t length = strcspn(text, " \t");
    if (!strncmp(text, "UNKNOWN", length) && length == 7) {
        *code = NVML_ERROR_UNKNOWN;
        return true;
    }
    for (size_t i = 0; i < CODE_COUNT; i++) {
        if (strlen(code_names[i]) == length && !strncmp(text, code_names[i], length)) {
            *code = (nvmlReturn_t)i;
            return true;
        }
    }
    return false;
}

/* CODE or SECONDS or "forever", then gpu= times= until= p= seed= id=. */
bool fault_parse(struct fault *fault, bool hang, const char *function, const char *text)
{
    memset(fault, 0, sizeof *fault);
    snprintf(fault->function, sizeof fault->function, "%s", function);
    fault->hang = hang;
    if (!hang && !code_parse(text, &fault->code))
        return false;
    if (hang)
        fault->seconds = strncmp(text, "forever", 7) ? strtod(text, NULL) : INFINITY;
    fault->gpu = (int)option(text, "gpu", -1);
    fault->probability = option(text, "p", 1);
    fault->until = option(text, "until", INFINITY);
    fault->times = (unsigned long)option(text, "times", 0);
    fault->id = (unsigned long)option(text, "id", 0);
    fault->seed = (unsigned int)option(text, "seed", 0);
    return true;
}

/* splitmix64: the same answer for the same seed and index, in every process. */
double fault_chance(uint64_t seed, uint64_t index)
{
    uint64_t z = seed * 0x9E3779B97F4A7C15u + index * 0xD1B54A32D192ED03u + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* "nvmlDeviceGetCount" means its later versions too, and "nvmlInit" whichever way it is called. */
static bool names(const char *pattern, const char *function)
{
    if (!strcmp(pattern, "*") || !strcmp(pattern, function))
        return true;
    size_t length = strlen(pattern);
    if (strncmp(pattern, function, length))
        return false;
    if (!strcmp(pattern, "nvmlInit"))
        return true;
    return !strncmp(function + length, "_v", 2);
}

/* How often each fault was asked for and fired in this process: by id, as the state may be read anew meanwhile. */
struct tally {
    unsigned long id, asked, fired;
};

static struct tally *tally_of(unsigned long id)
{
    static struct tally tallies[1024];
    size_t slot = id % (sizeof tallies / sizeof *tallies);
    if (tallies[slot].id != id)
        tallies[slot] = (struct tally){.id = id};
    return &tallies[slot];
}

static bool fires(const struct fault *fault)
{
    if (clock_now(CLOCK_MONOTONIC) >= fault->until)
        return false;
    state_lock();
    struct tally *tally = tally_of(fault->id);
    bool fired = (fault->times == 0 || tally->fired < fault->times) &&
                 (fault->probability >= 1 || fault_chance(fault->seed, tally->asked) < fault->probability);
    tally->asked++;
    tally->fired += fired;
    state_unlock();
    return fired;
}

/* of_gpu_only: pass over what was ordered for every GPU, for it had its turn when the call began. */
static bool applies(const struct fault *fault, const char *function, int gpu, bool of_gpu_only)
{
    if (of_gpu_only && fault->gpu < 0)
        return false;
    return names(fault->function, function) && (fault->gpu < 0 || fault->gpu == gpu);
}

nvmlReturn_t fault_error(const struct state *state, const char *function, int gpu, bool of_gpu_only)
{
    for (size_t i = 0; i < state->fault_count; i++) {
        const struct fault *fault = &state->faults[i];
        if (!fault->hang && applies(fault, function, gpu, of_gpu_only) && fires(fault))
            return fault->code;
    }
    return NVML_SUCCESS;
}

double fault_hang(const struct state *state, const char *function, int gpu, bool of_gpu_only)
{
    for (size_t i = 0; i < state->fault_count; i++) {
        const struct fault *fault = &state->faults[i];
        if (fault->hang && applies(fault, function, gpu, of_gpu_only) && clock_now(CLOCK_MONOTONIC) < fault->until)
            return fault->seconds;
    }
    return 0;
}
