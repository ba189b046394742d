/* Traffic counters and the other field values. */
#include "stub.h"

#include <limits.h>
#include <math.h>

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && (!value || counter >= NVML_PCIE_UTIL_COUNT))
        result = NVML_ERROR_INVALID_ARGUMENT;
    enum number offset = counter == NVML_PCIE_UTIL_TX_BYTES ? PCIE_TX : PCIE_RX;
    if (result == NVML_SUCCESS && isnan(call.device->number[offset]))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS) /* KB/s */
        *value = (unsigned int)(call.device->number[(int)offset + 1] / 1000);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && (!active || link >= NVML_NVLINK_MAX_LINKS))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && link >= call.device->number[NVLINKS])
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        *active = NVML_FEATURE_ENABLED;
    return call_end(&call, result);
}

static nvmlReturn_t set_count(nvmlFieldValue_t *field, double value)
{
    if (isnan(value))
        return NVML_ERROR_NOT_SUPPORTED;
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = (unsigned long long)value;
    return NVML_SUCCESS;
}

static nvmlReturn_t set_small(nvmlFieldValue_t *field, double value)
{
    if (isnan(value))
        return NVML_ERROR_NOT_SUPPORTED;
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.uiVal = (unsigned int)value;
    return NVML_SUCCESS;
}

/* One link, or all of them for the scope UINT_MAX. */
static nvmlReturn_t nvlink(const struct call *call, nvmlFieldValue_t *field, enum number offset, double unit)
{
    double links = call->device->number[NVLINKS];
    if (links == 0)
        return NVML_ERROR_NOT_SUPPORTED;
    if (field->scopeId != UINT_MAX && field->scopeId >= links)
        return NVML_ERROR_INVALID_ARGUMENT;
    double bytes = counter_value(call->device, offset, call->now) * (field->scopeId == UINT_MAX ? links : 1);
    return set_count(field, bytes / unit);
}

static nvmlReturn_t pcie(const struct call *call, nvmlFieldValue_t *field, enum number offset)
{
    double bytes = counter_value(call->device, offset, call->now), bits = call->device->number[PCIE_BITS];
    return set_count(field, bits < 64 ? fmod(bytes, exp2(bits)) : bytes);
}

static nvmlReturn_t get_field(const struct call *call, nvmlFieldValue_t *field)
{
    const struct device *device = call->device;
    switch (field->fieldId) {
    case NVML_FI_DEV_PCIE_COUNT_TX_BYTES: return pcie(call, field, PCIE_TX);
    case NVML_FI_DEV_PCIE_COUNT_RX_BYTES: return pcie(call, field, PCIE_RX);
    case NVML_FI_DEV_NVLINK_LINK_COUNT: return set_small(field, device->number[NVLINKS]);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX: return nvlink(call, field, NVLINK_TX, 1024);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX: return nvlink(call, field, NVLINK_RX, 1024);
    case NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES: return nvlink(call, field, NVLINK_TX, 1);
    case NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES: return nvlink(call, field, NVLINK_RX, 1);
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
    case NVML_FI_DEV_ENERGY:
        if (isnan(device->number[ENERGY]))
            return NVML_ERROR_NOT_SUPPORTED;
        return set_count(field, (double)energy_millijoules(device, call->now));
    case NVML_FI_DEV_POWER_AVERAGE:
        return set_small(field, isnan(device->number[POWER]) ? NAN : power_mean(device, call->now - 1, call->now));
    case NVML_FI_DEV_POWER_INSTANT:
        return set_small(field, isnan(device->number[POWER]) ? NAN
                                                             : power_mean(device, call->now - 0.001, call->now));
    default: return field->fieldId < NVML_FI_MAX ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && (!fields || count < 0))
        result = NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; result == NVML_SUCCESS && i < count; i++) {
        fields[i].timestamp = (long long)(clock_now(CLOCK_REALTIME) * 1e6);
        fields[i].latencyUsec = 0;
        fields[i].nvmlReturn = get_field(&call, &fields[i]);
    }
    return call_end(&call, result);
}
