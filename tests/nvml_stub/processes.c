/* Who is on the GPU, and how much of it each process uses. */
#include "stub.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

static unsigned int pid_of(const struct call *call, const struct process *process)
{
    return (process->self ? (unsigned int)getpid() : process->pid) + call->state->pid_offset;
}

/* The instance's processes for an instance, everybody's for a GPU. */
static size_t select_processes(const struct call *call, const char *kinds, const struct process **found, size_t room)
{
    size_t count = 0;
    int last = call->mig_index < 0 && call->gpu->device.number[MIG_MODE] == 1 ? MAX_MIG : 0;
    for (int i = 0; i <= last; i++) {
        const struct device *device = i == 0 ? call->device : &call->gpu->mig[i - 1];
        for (size_t k = 0; k < device->process_count && count < room; k++) {
            if (strchr(kinds, device->processes[k].kind))
                found[count++] = &device->processes[k];
        }
    }
    return count;
}

#define MAX_PROCESSES 256

/* In the vocabulary of version 3, which is that of version 2; the first had no instances. */
static nvmlReturn_t list(struct call *call, const char *kinds, unsigned int *count, nvmlProcessInfo_t *v2,
                         nvmlProcessInfo_v1_t *v1)
{
    const struct process *found[MAX_PROCESSES];
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int room = *count;
    *count = (unsigned int)select_processes(call, kinds, found, MAX_PROCESSES);
    if (room < *count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    bool instance = call->mig_index >= 0;
    for (unsigned int i = 0; i < *count; i++) {
        unsigned int pid = pid_of(call, found[i]);
        if (v1)
            v1[i] = (nvmlProcessInfo_v1_t){.pid = pid, .usedGpuMemory = found[i]->memory};
        if (v2)
            v2[i] = (nvmlProcessInfo_t){
                .pid = pid,
                .usedGpuMemory = found[i]->memory,
                .gpuInstanceId = instance ? (unsigned int)call->device->number[MIG_GI] : 0xffffffffu,
                .computeInstanceId = instance ? (unsigned int)call->device->number[MIG_CI] : 0xffffffffu,
            };
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t running(const char *function, nvmlDevice_t device, const char *kinds, unsigned int *count,
                            nvmlProcessInfo_t *v2, nvmlProcessInfo_v1_t *v1)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, function, device);
    if (result == NVML_SUCCESS)
        result = list(&call, kinds, count, v2, v1);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos)
{
    return running(__func__, device, "C", count, NULL, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos)
{
    return running(__func__, device, "C", count, infos, NULL);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    return running(__func__, device, "C", count, infos, NULL);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                   nvmlProcessInfo_v1_t *infos)
{
    return running(__func__, device, "G", count, NULL, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_v2_t *infos)
{
    return running(__func__, device, "G", count, infos, NULL);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_t *infos)
{
    return running(__func__, device, "G", count, infos, NULL);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                        nvmlProcessInfo_t *infos)
{
    return running(__func__, device, "M", count, infos, NULL);
}

/* The processes that used the GPU and whose last sample is newer than `seen`. */
static size_t busy_processes(const struct call *call, unsigned long long seen, const struct process **found,
                             unsigned long long *stamp)
{
    double period = call->device->number[SAMPLE_PERIOD];
    *stamp = sample_stamp(call->device, floor(call->now / period) * period);
    if (*stamp <= seen)
        return 0;
    size_t count = 0, all = select_processes(call, "CGM", found, MAX_PROCESSES);
    for (size_t i = 0; i < all; i++) {
        if (found[i]->sm > 0 || found[i]->mem > 0)
            found[count++] = found[i];
    }
    return count;
}

/* Both calls answer the question of size with INSUFFICIENT_SIZE; when there is nothing, drivers differ. */
static nvmlReturn_t size_answer(const struct call *call, size_t found, unsigned int room, const void *to)
{
    if (call->gpu->device.number[MIG_MODE] == 1)
        return NVML_ERROR_NOT_SUPPORTED;
    if (found == 0)
        return call->device->number[EMPTY_SUCCESS] != 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
    return !to || room < found ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long seen)
{
    struct call call;
    const struct process *found[MAX_PROCESSES];
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !count)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    unsigned long long stamp;
    size_t busy = busy_processes(&call, seen, found, &stamp);
    result = size_answer(&call, busy, *count, samples);
    *count = (unsigned int)busy;
    for (size_t i = 0; result == NVML_SUCCESS && i < busy; i++)
        samples[i] = (nvmlProcessUtilizationSample_t){.pid = pid_of(&call, found[i]),
                                                      .timeStamp = stamp,
                                                      .smUtil = (unsigned int)found[i]->sm,
                                                      .memUtil = (unsigned int)found[i]->mem};
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *info)
{
    struct call call;
    const struct process *found[MAX_PROCESSES];
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !info)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && info->version != nvmlProcessesUtilizationInfo_v1)
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    unsigned long long stamp;
    size_t busy = busy_processes(&call, info->lastSeenTimeStamp, found, &stamp);
    result = size_answer(&call, busy, info->processSamplesCount, info->procUtilArray);
    info->processSamplesCount = (unsigned int)busy;
    for (size_t i = 0; result == NVML_SUCCESS && i < busy; i++)
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){.pid = pid_of(&call, found[i]),
                                                                   .timeStamp = stamp,
                                                                   .smUtil = (unsigned int)found[i]->sm,
                                                                   .memUtil = (unsigned int)found[i]->mem};
    return call_end(&call, result);
}
