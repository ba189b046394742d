/* `key value` lines into a state. An unknown key is reported on stderr and passed over: a test that misspells one
 * should see it, and must not die of it in the middle of a call. */
#include "stub.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct number_key {
    const char *name;
    enum number first;
    int width; /* how many numbers the line may hold, kept one after another */
    double otherwise[3];
};

static const struct number_key number_keys[] = {
    {"minor", MINOR, 1, {NAN}},
    {"lost", LOST, 1, {0}},
    {"gpm", GPM, 1, {NAN}}, /* n/a: by architecture */
    {"memory.total", MEMORY_TOTAL, 1, {80.0 * (1 << 30)}},
    {"memory.used", MEMORY_USED, 1, {1.0 * (1 << 30)}},
    {"memory.reserved", MEMORY_RESERVED, 1, {512.0 * (1 << 20)}},
    {"memutil", MEMORY_UTIL, 1, {0}},
    {"temperature", TEMPERATURE, 1, {40}},
    {"power", POWER, 1, {70000}},
    {"power.busy", POWER_BUSY, 1, {NAN}}, /* n/a: the power does not depend on the load */
    {"power.limit", POWER_LIMIT, 1, {700000}},
    {"energy", ENERGY, 2, {0, 0}},
    {"fans", FANS, 1, {0}},
    {"fan", FAN, 1, {NAN}},
    {"samples.period", SAMPLE_PERIOD, 1, {1.0 / 6}},
    {"samples.ring", SAMPLE_RING, 1, {72}},
    {"samples.floor", SAMPLE_FLOOR, 1, {0}},
    {"samples.shift", SAMPLE_SHIFT, 1, {0}},
    {"samples.idle_not_found", SAMPLE_IDLE_NOT_FOUND, 1, {0}},
    {"samples.duplicate", SAMPLE_DUPLICATE, 1, {0}},
    {"samples.zero", SAMPLE_ZERO, 1, {0}},
    {"samples.unsorted", SAMPLE_UNSORTED, 1, {0}},
    {"samples.bad", SAMPLE_BAD, 2, {0, 4294967295.0}},
    {"samples.seed", SAMPLE_SEED, 1, {0}},
    {"rates.gpu", RATES_GPU, 1, {NAN}}, /* n/a: the last sample */
    {"rates.memory", RATES_MEMORY, 1, {NAN}},
    {"pcie.tx", PCIE_TX, 3, {NAN, 0, 0}},
    {"pcie.rx", PCIE_RX, 3, {NAN, 0, 0}},
    {"pcie.bits", PCIE_BITS, 1, {64}},
    {"nvlinks", NVLINKS, 1, {0}},
    {"nvlink.tx", NVLINK_TX, 3, {NAN, 0, 0}},
    {"nvlink.rx", NVLINK_RX, 3, {NAN, 0, 0}},
    {"mig.mode", MIG_MODE, 1, {0}},
    {"mig.max", MIG_MAX, 1, {7}},
    {"gi", MIG_GI, 1, {NAN}},
    {"ci", MIG_CI, 1, {0}},
    {"slices", MIG_SLICES, 1, {1}},
    {"processes.empty_success", EMPTY_SUCCESS, 1, {0}},
};

static const char *const string_keys[STRING_COUNT] = {
    [UUID] = "uuid",       [NAME] = "name",
    [BUS_ID] = "bus_id",   [SERIAL] = "serial",
    [ARCH] = "arch",       [PROFILE] = "profile",
    [SAMPLE_CLOCK] = "samples.clock", [SAMPLE_TYPE] = "samples.type",
};

/* The text after " name=" in `line`, or NULL. */
static const char *option_find(const char *line, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = line; (at = strstr(at, name)); at += length) {
        if ((at == line || isspace((unsigned char)at[-1])) && at[length] == '=')
            return at + length + 1;
    }
    return NULL;
}

double option(const char *line, const char *name, double otherwise)
{
    const char *text = option_find(line, name);
    return text ? strtod(text, NULL) : otherwise;
}

bool option_text(const char *line, const char *name, char *value, size_t size)
{
    const char *text = option_find(line, name);
    if (!text)
        return false;
    snprintf(value, size, "%.*s", (int)strcspn(text, " \t"), text);
    return true;
}

/* One more element at the end of a growing array; the state is read seldom, so growing by one will do. */
static void *append(void *array, size_t *count, size_t size)
{
    void *grown = realloc(array, (*count + 1) * size);
    if (!grown)
        abort();
    memset((char *)grown + *count * size, 0, size);
    (*count)++;
    return grown;
}

static bool process_parse(struct process *process, const char *text)
{
    char *end;
    process->self = !strncmp(text, "self", 4);
    process->pid = process->self ? 0 : (unsigned int)strtoul(text, NULL, 10);
    text += strcspn(text, " \t");
    text += strspn(text, " \t");
    process->memory = strtoull(text, &end, 10);
    if (end == text)
        process->memory = (unsigned long long)NVML_VALUE_NOT_AVAILABLE;
    char kind[4] = "C";
    option_text(text, "kind", kind, sizeof kind);
    process->kind = kind[0];
    process->sm = option(text, "sm", 0);
    process->mem = option(text, "mem", 0);
    return true;
}

static bool numbers_parse(struct device *device, const struct number_key *key, const char *value)
{
    for (int i = 0; i < key->width; i++) {
        char *end;
        double number = strtod(value, &end);
        if (!strncmp(value, "n/a", 3))
            number = NAN, end = (char *)value + 3;
        if (end == value)
            return i > 0;
        device->number[(int)key->first + i] = number;
        value = end + strspn(end, " \t");
    }
    return true;
}

static bool load_parse(struct device *device, const char *value)
{
    device->segments = append(device->segments, &device->segment_count, sizeof *device->segments);
    return segment_parse(&device->segments[device->segment_count - 1], value);
}

static bool device_parse(struct device *device, const char *key, const char *value)
{
    device->present = true;
    for (int i = 0; i < STRING_COUNT; i++) {
        if (!strcmp(key, string_keys[i])) {
            snprintf(device->string[i], STRING_SIZE, "%s", value);
            return true;
        }
    }
    for (size_t i = 0; i < sizeof number_keys / sizeof *number_keys; i++) {
        if (!strcmp(key, number_keys[i].name))
            return numbers_parse(device, &number_keys[i], value);
    }
    if (!strcmp(key, "handle_error")) {
        nvmlReturn_t code = NVML_ERROR_UNKNOWN;
        bool known = code_parse(value, &code);
        device->number[HANDLE_ERROR] = code;
        return known;
    }
    if (!strcmp(key, "load"))
        return load_parse(device, value);
    if (!strcmp(key, "util")) {
        char constant[64];
        snprintf(constant, sizeof constant, "0 const level=%s", value);
        return load_parse(device, constant);
    }
    if (!strcmp(key, "process")) {
        device->processes = append(device->processes, &device->process_count, sizeof *device->processes);
        return process_parse(&device->processes[device->process_count - 1], value);
    }
    return false;
}

/* "0.uuid" or "0.mig.2.uuid" */
static bool gpu_parse(struct state *state, const char *key, const char *value)
{
    char *end;
    unsigned long index = strtoul(key, &end, 10);
    if (end == key || *end != '.' || index >= MAX_GPUS)
        return false;
    key = end + 1;
    if (!strncmp(key, "mig.", 4) && isdigit((unsigned char)key[4])) {
        unsigned long instance = strtoul(key + 4, &end, 10);
        return *end == '.' && instance < MAX_MIG && device_parse(&state->gpus[index].mig[instance], end + 1, value);
    }
    return device_parse(&state->gpus[index].device, key, value);
}

static bool line_parse(struct state *state, const char *key, const char *value)
{
    bool hang = !strncmp(key, "hang.", 5);
    if (hang || !strncmp(key, "error.", 6)) {
        state->faults = append(state->faults, &state->fault_count, sizeof *state->faults);
        return fault_parse(&state->faults[state->fault_count - 1], hang, key + (hang ? 5 : 6), value);
    }
    if (!strncmp(key, "gpu.", 4))
        return gpu_parse(state, key + 4, value);
    if (!strcmp(key, "gpus"))
        state->gpu_count = (unsigned int)fmin(strtoul(value, NULL, 10), MAX_GPUS);
    else if (!strcmp(key, "driver_version"))
        snprintf(state->driver_version, sizeof state->driver_version, "%s", value);
    else if (!strcmp(key, "nvml_version"))
        snprintf(state->nvml_version, sizeof state->nvml_version, "%s", value);
    else if (!strcmp(key, "cuda_version"))
        state->cuda_version = atoi(value);
    else if (!strcmp(key, "pid_offset"))
        state->pid_offset = (unsigned int)strtoul(value, NULL, 10);
    else
        return false;
    return true;
}

static void device_defaults(struct device *device, int index, int instance)
{
    for (size_t i = 0; i < sizeof number_keys / sizeof *number_keys; i++) {
        for (int k = 0; k < number_keys[i].width; k++)
            device->number[(int)number_keys[i].first + k] = number_keys[i].otherwise[k];
    }
    device->number[MINOR] = index;
    device->number[MIG_GI] = instance + 1;
    const char *uuid = instance < 0 ? "GPU-00000000-0000-4000-8000-%012x" : "MIG-00000000-0000-4000-8000-%08x%04x";
    snprintf(device->string[UUID], STRING_SIZE, uuid, index, instance);
    snprintf(device->string[NAME], STRING_SIZE, "NVIDIA H100 80GB HBM3");
    snprintf(device->string[BUS_ID], STRING_SIZE, "%08X:%02X:00.0", 0, index + 1);
    snprintf(device->string[SERIAL], STRING_SIZE, "%013d", index);
    snprintf(device->string[ARCH], STRING_SIZE, "hopper");
    snprintf(device->string[PROFILE], STRING_SIZE, "1g.10gb");
    snprintf(device->string[SAMPLE_CLOCK], STRING_SIZE, "epoch");
    snprintf(device->string[SAMPLE_TYPE], STRING_SIZE, "uint");
}

static struct state *state_defaults(void)
{
    struct state *state = calloc(1, sizeof *state);
    if (!state)
        return NULL;
    atomic_init(&state->references, 1);
    state->cuda_version = 13000;
    snprintf(state->driver_version, sizeof state->driver_version, "580.95.05");
    snprintf(state->nvml_version, sizeof state->nvml_version, "13.580.95.05");
    for (int i = 0; i < MAX_GPUS; i++) {
        device_defaults(&state->gpus[i].device, i, -1);
        for (int k = 0; k < MAX_MIG; k++)
            device_defaults(&state->gpus[i].mig[k], i, k);
    }
    return state;
}

struct state *state_parse(char *text, const char *path)
{
    struct state *state = state_defaults();
    char *rest = text, *line;
    for (int number = 1; state && (line = strsep(&rest, "\n")); number++) {
        line += strspn(line, " \t");
        if (*line == '\0' || *line == '#')
            continue;
        char *value = line + strcspn(line, " \t");
        if (*value)
            *value++ = '\0';
        value += strspn(value, " \t");
        if (!line_parse(state, line, value))
            fprintf(stderr, "nvml_stub: %s:%d: cannot read '%s %s'\n", path, number, line, value);
    }
    return state;
}

static void device_free(struct device *device)
{
    for (size_t i = 0; i < device->segment_count; i++)
        free(device->segments[i].steps);
    free(device->segments);
    free(device->processes);
}

void state_free(struct state *state)
{
    for (int i = 0; i < MAX_GPUS; i++) {
        device_free(&state->gpus[i].device);
        for (int k = 0; k < MAX_MIG; k++)
            device_free(&state->gpus[i].mig[k]);
    }
    free(state->faults);
    free(state);
}
