/* What every exported function begins and ends with: the log, the hang, the ordered error, the handle. */
#include "stub.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A handle is an address in this table, valid as long as the process lives, as the driver's are. */
struct nvmlDevice_st {
    char slot;
};

static struct nvmlDevice_st slots[MAX_GPUS][1 + MAX_MIG];
static int initialised;
static pid_t initialised_by;

nvmlDevice_t device_handle(int gpu_index, int mig_index)
{
    return &slots[gpu_index][1 + mig_index];
}

/* One line when a call begins and, unless it hangs for ever, one with its result when it ends. The file is opened each
 * time: whoever counts file descriptors should not find ours. */
static void log_call(const char *function, const nvmlReturn_t *result)
{
    const char *path = getenv("NVML_STUB_LOG");
    char line[256];
    if (!path || !*path)
        return;
    int length = snprintf(line, sizeof line, "%.6f %ld %ld %s", clock_now(CLOCK_MONOTONIC), (long)getpid(),
                          (long)syscall(SYS_gettid), function);
    length += snprintf(line + length, sizeof line - (size_t)length, result ? " %d\n" : "\n", result ? (int)*result : 0);
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0)
        return;
    if (write(file, line, (size_t)length) != length)
        fprintf(stderr, "nvml_stub: cannot write %s\n", path);
    close(file);
}

/* Sleeps as a call stuck in the kernel would: signals do not end it, only time or a new state file does. */
static void hang(struct call *call, bool of_gpu_only)
{
    double begun = clock_now(CLOCK_MONOTONIC), seconds;
    while (call->state && (seconds = fault_hang(call->state, call->function, call->gpu_index, of_gpu_only)) > 0 &&
           clock_now(CLOCK_MONOTONIC) - begun < seconds) {
        state_release(call->state);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        call->state = state_acquire();
    }
}

static void open_call(struct call *call, const char *function)
{
    *call = (struct call){.function = function, .gpu_index = -1, .mig_index = -1};
    log_call(function, NULL);
    call->state = state_acquire();
}

static nvmlReturn_t ordered(struct call *call, bool of_gpu_only)
{
    hang(call, of_gpu_only);
    if (!call->state)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    nvmlReturn_t error = fault_error(call->state, call->function, call->gpu_index, of_gpu_only);
    follow_touch(call->state);
    call->now = clock_now(CLOCK_MONOTONIC);
    return error;
}

static bool is_initialised(void)
{
    state_lock();
    bool yes = initialised > 0 && initialised_by == getpid();
    state_unlock();
    return yes;
}

nvmlReturn_t call_begin(struct call *call, const char *function)
{
    open_call(call, function);
    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    return ordered(call, false);
}

nvmlReturn_t call_turn_to(struct call *call, int gpu_index)
{
    call->gpu_index = gpu_index;
    return ordered(call, true);
}

static bool find_slot(struct call *call, nvmlDevice_t device)
{
    uintptr_t offset = (uintptr_t)device - (uintptr_t)slots;
    if (!device || offset >= sizeof slots)
        return false;
    call->gpu_index = (int)(offset / sizeof slots[0]);
    call->mig_index = (int)(offset % sizeof slots[0]) - 1;
    return true;
}

nvmlReturn_t call_begin_device(struct call *call, const char *function, nvmlDevice_t device)
{
    open_call(call, function);
    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!find_slot(call, device))
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t error = ordered(call, false);
    if (error != NVML_SUCCESS)
        return error;
    call->gpu = &call->state->gpus[call->gpu_index];
    call->device = call->mig_index < 0 ? &call->gpu->device : &call->gpu->mig[call->mig_index];
    if (call->gpu_index >= (int)call->state->gpu_count || call->gpu->device.number[LOST] != 0)
        return NVML_ERROR_GPU_IS_LOST;
    if (call->mig_index >= 0 && (!call->device->present || call->gpu->device.number[MIG_MODE] != 1))
        return NVML_ERROR_NOT_FOUND; /* the instance was destroyed since */
    return NVML_SUCCESS;
}

/* For what the driver answers for whole GPUs only. */
nvmlReturn_t call_begin_gpu(struct call *call, const char *function, nvmlDevice_t device)
{
    nvmlReturn_t error = call_begin_device(call, function, device);
    return error == NVML_SUCCESS && call->mig_index >= 0 ? NVML_ERROR_NOT_SUPPORTED : error;
}

nvmlReturn_t call_end(struct call *call, nvmlReturn_t result)
{
    if (call->state)
        state_release(call->state);
    log_call(call->function, &result);
    return result;
}

static nvmlReturn_t init(const char *function)
{
    struct call call;
    open_call(&call, function);
    nvmlReturn_t error = ordered(&call, false);
    if (error == NVML_SUCCESS) {
        state_lock();
        bool forked = initialised > 0 && initialised_by != getpid();
        initialised = forked ? 1 : initialised + 1;
        initialised_by = getpid();
        state_unlock();
        if (forked) {
            follow_restart();
            follow_touch(call.state);
        }
    }
    return call_end(&call, error);
}

nvmlReturn_t nvmlInit(void) { return init(__func__); }
nvmlReturn_t nvmlInit_v2(void) { return init(__func__); }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    return init(__func__);
}

nvmlReturn_t nvmlShutdown(void)
{
    struct call call;
    nvmlReturn_t error = call_begin(&call, __func__);
    if (error == NVML_SUCCESS) {
        state_lock();
        initialised--;
        state_unlock();
    }
    return call_end(&call, error);
}

nvmlReturn_t copy_string(const char *from, char *to, unsigned int length)
{
    if (!to)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(from) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, from);
    return NVML_SUCCESS;
}

nvmlReturn_t copy_number(const struct call *call, enum number number, unsigned int *to)
{
    if (!to)
        return NVML_ERROR_INVALID_ARGUMENT;
    double value = call->device->number[number];
    if (isnan(value))
        return NVML_ERROR_NOT_SUPPORTED;
    *to = (unsigned int)(long long)value;
    return NVML_SUCCESS;
}
