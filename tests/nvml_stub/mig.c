/* MIG instances: handles of their own beneath a GPU's. */
#include "stub.h"

#include <math.h>
#include <string.h>

static bool mig_capable(const struct call *call)
{
    return !isnan(call->gpu->device.number[MIG_MODE]);
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && (!current || !pending))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && !mig_capable(&call))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        *current = *pending = (unsigned int)call.device->number[MIG_MODE];
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, MIG_MAX, count);
    if (result == NVML_SUCCESS && !mig_capable(&call))
        *count = 0;
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *instance)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && (!instance || index >= call.device->number[MIG_MAX]))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && !mig_capable(&call))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS &&
        (call.device->number[MIG_MODE] != 1 || index >= MAX_MIG || !call.gpu->mig[index].present))
        result = NVML_ERROR_NOT_FOUND;
    if (result == NVML_SUCCESS && call.gpu->mig[index].number[HANDLE_ERROR] != 0)
        result = (nvmlReturn_t)call.gpu->mig[index].number[HANDLE_ERROR];
    if (result == NVML_SUCCESS)
        *instance = device_handle(call.gpu_index, (int)index);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_instance)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && !is_instance)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *is_instance = call.mig_index >= 0;
    return call_end(&call, result);
}

/* For what only an instance has. */
static nvmlReturn_t begin_instance(struct call *call, const char *function, nvmlDevice_t device)
{
    nvmlReturn_t result = call_begin_device(call, function, device);
    return result == NVML_SUCCESS && call->mig_index < 0 ? NVML_ERROR_INVALID_ARGUMENT : result;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = begin_instance(&call, __func__, instance);
    if (result == NVML_SUCCESS && !device)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *device = device_handle(call.gpu_index, -1);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    struct call call;
    nvmlReturn_t result = begin_instance(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, MIG_GI, id);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    struct call call;
    nvmlReturn_t result = begin_instance(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, MIG_CI, id);
    return call_end(&call, result);
}

static nvmlReturn_t get_attributes(const char *function, nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    struct call call;
    nvmlReturn_t result = begin_instance(&call, function, device);
    if (result == NVML_SUCCESS && !attributes)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        const double *number = call.device->number;
        memset(attributes, 0, sizeof *attributes);
        attributes->multiprocessorCount = (unsigned int)(16 * number[MIG_SLICES]);
        attributes->sharedCopyEngineCount = 1;
        attributes->gpuInstanceSliceCount = (unsigned int)number[MIG_SLICES];
        attributes->computeInstanceSliceCount = (unsigned int)number[MIG_SLICES];
        attributes->memorySizeMB = (unsigned long long)(number[MEMORY_TOTAL] / (1 << 20));
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    return get_attributes(__func__, device, attributes);
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    return get_attributes(__func__, device, attributes);
}
