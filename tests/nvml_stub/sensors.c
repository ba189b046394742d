/* Memory, temperature, power, energy, fans. */
#include "stub.h"

#include <math.h>

static unsigned long long bytes(const struct call *call, enum number number)
{
    double value = call->device->number[number];
    return isnan(value) ? 0 : (unsigned long long)value;
}

static unsigned long long free_bytes(unsigned long long total, unsigned long long taken)
{
    return taken < total ? total - taken : 0;
}

static nvmlReturn_t memory_known(const struct call *call, const void *memory)
{
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    return isnan(call->device->number[MEMORY_USED]) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = memory_known(&call, memory);
    if (result == NVML_SUCCESS) { /* version 1 counts what the driver reserves as used */
        memory->total = bytes(&call, MEMORY_TOTAL);
        memory->used = bytes(&call, MEMORY_USED) + bytes(&call, MEMORY_RESERVED);
        memory->free = free_bytes(memory->total, memory->used);
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = memory_known(&call, memory);
    if (result == NVML_SUCCESS && memory->version != nvmlMemory_v2)
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result == NVML_SUCCESS) {
        memory->total = bytes(&call, MEMORY_TOTAL);
        memory->used = bytes(&call, MEMORY_USED);
        memory->reserved = bytes(&call, MEMORY_RESERVED);
        memory->free = free_bytes(memory->total, memory->used + memory->reserved);
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *degrees)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && sensor != NVML_TEMPERATURE_GPU)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        result = copy_number(&call, TEMPERATURE, degrees);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !temperature)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && temperature->version != nvmlTemperature_v1)
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result == NVML_SUCCESS && temperature->sensorType != NVML_TEMPERATURE_GPU)
        result = NVML_ERROR_INVALID_ARGUMENT;
    unsigned int degrees = 0;
    if (result == NVML_SUCCESS)
        result = copy_number(&call, TEMPERATURE, &degrees);
    if (result == NVML_SUCCESS)
        temperature->temperature = (int)degrees;
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, POWER, milliwatts);
    if (result == NVML_SUCCESS)
        *milliwatts = (unsigned int)power_mean(call.device, call.now - POWER_WINDOW, call.now);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !energy)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && isnan(call.device->number[ENERGY]))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        *energy = energy_millijoules(call.device, call.now);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *limit)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, POWER_LIMIT, limit);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, POWER_LIMIT, limit);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *fans)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, FANS, fans);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *percent)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, FAN, percent);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned int fan, unsigned int *percent)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && fan > 0 && fan >= call.device->number[FANS])
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        result = copy_number(&call, FAN, percent);
    return call_end(&call, result);
}
