/* Driver and library as a whole, and the way to the devices. */
#include "stub.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_LIBRARY_NOT_FOUND: return "NVML Shared Library Not Found";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    case NVML_ERROR_GPU_NOT_FOUND: return "GPU not found";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__);
    if (result == NVML_SUCCESS)
        result = copy_string(call.state->driver_version, version, length);
    return call_end(&call, result);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__);
    if (result == NVML_SUCCESS)
        result = copy_string(call.state->nvml_version, version, length);
    return call_end(&call, result);
}

static nvmlReturn_t cuda_version(const char *function, int *version)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, function);
    if (result == NVML_SUCCESS && !version)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *version = call.state->cuda_version;
    return call_end(&call, result);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return cuda_version(__func__, version); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return cuda_version(__func__, version); }

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__);
    if (result == NVML_SUCCESS) {
        char path[64], text[256] = "";
        snprintf(path, sizeof path, "/proc/%u/comm", pid - call.state->pid_offset);
        FILE *file = fopen(path, "re");
        if (!file || !fgets(text, sizeof text, file))
            result = NVML_ERROR_NOT_FOUND;
        if (file)
            fclose(file);
        text[strcspn(text, "\n")] = '\0';
        if (result == NVML_SUCCESS)
            result = copy_string(text, name, length);
    }
    return call_end(&call, result);
}

static nvmlReturn_t count(const char *function, unsigned int *devices)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, function);
    if (result == NVML_SUCCESS && !devices)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *devices = call.state->gpu_count;
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *devices) { return count(__func__, devices); }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *devices) { return count(__func__, devices); }

static nvmlReturn_t hand_over(struct call *call, int gpu, int instance, nvmlDevice_t *device)
{
    nvmlReturn_t ordered = call_turn_to(call, gpu);
    if (ordered != NVML_SUCCESS)
        return ordered;
    const double *number = call->state->gpus[gpu].device.number;
    if (number[LOST] != 0)
        return NVML_ERROR_GPU_IS_LOST;
    if (number[HANDLE_ERROR] != 0)
        return (nvmlReturn_t)number[HANDLE_ERROR];
    *device = device_handle(gpu, instance);
    return NVML_SUCCESS;
}

static nvmlReturn_t by_index(const char *function, unsigned int index, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, function);
    if (result == NVML_SUCCESS && (!device || index >= call.state->gpu_count))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        result = hand_over(&call, (int)index, -1, device);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return by_index(__func__, index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    return by_index(__func__, index, device);
}

static nvmlReturn_t by_string(const char *function, enum string key, const char *wanted, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, function);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    if (!wanted || !device)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    for (int i = 0; i < (int)call.state->gpu_count; i++) {
        const struct gpu *gpu = &call.state->gpus[i];
        if (!strcasecmp(gpu->device.string[key], wanted))
            return call_end(&call, hand_over(&call, i, -1, device));
        for (int k = 0; k < MAX_MIG && key == UUID && gpu->device.number[MIG_MODE] == 1; k++) {
            if (gpu->mig[k].present && !strcasecmp(gpu->mig[k].string[UUID], wanted))
                return call_end(&call, hand_over(&call, i, k, device));
        }
    }
    return call_end(&call, NVML_ERROR_NOT_FOUND);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return by_string(__func__, UUID, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
    if (!uuid)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uuid->version != nvmlUUID_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (uuid->type != NVML_UUID_TYPE_ASCII)
        return NVML_ERROR_NOT_SUPPORTED;
    return by_string(__func__, UUID, uuid->value.str, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    return by_string(__func__, SERIAL, serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
    return by_string(__func__, BUS_ID, bus_id, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    return by_string(__func__, BUS_ID, bus_id, device);
}
