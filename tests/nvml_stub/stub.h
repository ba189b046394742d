/* The stub's own types. Signatures of everything exported come from NVIDIA's nvml.h, so the compiler checks them. */
#ifndef NVML_STUB_H
#define NVML_STUB_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Both the old and the versioned entry points are wanted, and only they are exported (-fvisibility=hidden). */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#pragma GCC visibility push(default)
#include <nvml.h>
#pragma GCC visibility pop

#define MAX_GPUS 16
#define MAX_MIG 8
#define STRING_SIZE 96

/* Numbers that the state file can set for a device; NAN means "n/a", which the driver calls NOT_SUPPORTED. */
enum number {
    MINOR, LOST, HANDLE_ERROR, GPM,
    MEMORY_TOTAL, MEMORY_USED, MEMORY_RESERVED, MEMORY_UTIL,
    TEMPERATURE, POWER, POWER_BUSY, POWER_LIMIT, ENERGY, ENERGY_SINCE, FANS, FAN,
    SAMPLE_PERIOD, SAMPLE_RING, SAMPLE_FLOOR, SAMPLE_SHIFT, SAMPLE_IDLE_NOT_FOUND,
    SAMPLE_DUPLICATE, SAMPLE_ZERO, SAMPLE_UNSORTED, SAMPLE_BAD, SAMPLE_BAD_VALUE, SAMPLE_SEED,
    RATES_GPU, RATES_MEMORY,
    PCIE_TX, PCIE_TX_RATE, PCIE_TX_SINCE, PCIE_RX, PCIE_RX_RATE, PCIE_RX_SINCE, PCIE_BITS,
    NVLINKS, NVLINK_TX, NVLINK_TX_RATE, NVLINK_TX_SINCE, NVLINK_RX, NVLINK_RX_RATE, NVLINK_RX_SINCE,
    MIG_MODE, MIG_MAX, MIG_GI, MIG_CI, MIG_SLICES,
    EMPTY_SUCCESS,
    NUMBER_COUNT
};

enum string { UUID, NAME, BUS_ID, SERIAL, ARCH, PROFILE, SAMPLE_CLOCK, SAMPLE_TYPE, STRING_COUNT };

enum load_kind { LOAD_CONST, LOAD_SQUARE, LOAD_STEPS, LOAD_FOLLOW };

struct step {
    double at, level;
};

/* The load (0..1) from `since` until the next segment begins. */
struct segment {
    enum load_kind kind;
    double since;
    double level, low, period, duty, phase;
    struct step *steps;
    size_t step_count;
    int source; /* of follow.c */
    double cores;
};

struct process {
    bool self;
    unsigned int pid;
    unsigned long long memory; /* or NVML_VALUE_NOT_AVAILABLE */
    char kind;                 /* C, G or M */
    double sm, mem;            /* percent, for the per-process samples */
};

struct device {
    bool present;
    double number[NUMBER_COUNT];
    char string[STRING_COUNT][STRING_SIZE];
    struct segment *segments;
    size_t segment_count;
    struct process *processes;
    size_t process_count;
};

struct gpu {
    struct device device;
    struct device mig[MAX_MIG];
};

struct fault {
    char function[80]; /* "*": every function */
    bool hang;
    nvmlReturn_t code;
    double seconds; /* of a hang; INFINITY: until the line goes */
    int gpu;        /* -1: any, and calls without a device too */
    double probability, until;
    unsigned long times, id;
    unsigned int seed;
};

struct state {
    atomic_int references;
    unsigned int gpu_count;
    unsigned int pid_offset;
    int cuda_version;
    char driver_version[80], nvml_version[80];
    struct fault *faults;
    size_t fault_count;
    struct gpu gpus[MAX_GPUS];
};

/* state.c */
struct state *state_acquire(void); /* NULL: there is no state file, so no driver */
void state_release(struct state *state);
void state_lock(void);
void state_unlock(void);

/* parse.c */
struct state *state_parse(char *text, const char *path);
void state_free(struct state *state);
double option(const char *line, const char *name, double otherwise);
bool option_text(const char *line, const char *name, char *value, size_t size);

/* load.c */
double clock_now(clockid_t clock);
bool segment_parse(struct segment *segment, const char *text);
double load_integral(const struct device *device, double from, double to); /* seconds at full load */
double load_begin(const struct device *device);          /* before this the load is not known */
double load_horizon(const struct device *device, double now); /* up to this the load is known */

/* follow.c: CPU time as load */
int follow_source(const char *spec); /* index, or -1 */
void follow_touch(const struct state *state);
void follow_restart(void);
double follow_integral(int source, double from, double to);
double follow_first(int source);
double follow_last(int source);

/* fault.c */
bool code_parse(const char *text, nvmlReturn_t *code);
bool fault_parse(struct fault *fault, bool hang, const char *function, const char *text);
nvmlReturn_t fault_error(const struct state *state, const char *function, int gpu, bool of_gpu_only);
/* seconds, 0: none */
double fault_hang(const struct state *state, const char *function, int gpu, bool of_gpu_only);
double fault_chance(uint64_t seed, uint64_t index);                          /* 0..1, the same every time */

/* call.c: what every exported function begins and ends with */
struct call {
    const char *function;
    struct state *state;
    double now;
    int gpu_index, mig_index; /* -1: none */
    const struct gpu *gpu;
    const struct device *device; /* the GPU itself or the MIG instance */
};

nvmlReturn_t call_begin(struct call *call, const char *function);
nvmlReturn_t call_begin_device(struct call *call, const char *function, nvmlDevice_t device);
nvmlReturn_t call_begin_gpu(struct call *call, const char *function, nvmlDevice_t device);
/* a handle is asked for, and now it is known of which GPU */
nvmlReturn_t call_turn_to(struct call *call, int gpu_index);
nvmlReturn_t call_end(struct call *call, nvmlReturn_t result);
nvmlDevice_t device_handle(int gpu_index, int mig_index);
nvmlReturn_t copy_string(const char *from, char *to, unsigned int length);
nvmlReturn_t copy_number(const struct call *call, enum number number, unsigned int *to);

/* samples.c, used by processes.c */
unsigned long long sample_stamp(const struct device *device, double at);

/* power.c */
#define POWER_WINDOW 0.1 /* seconds that the driver's power reading is a mean of */
double power_mean(const struct device *device, double from, double to); /* milliwatts */
unsigned long long energy_millijoules(const struct device *device, double at);
double counter_value(const struct device *device, enum number offset, double at);

#endif
