/* GPU performance monitoring (Hopper and later): two samples of running sums, and the means between them. */
#include "stub.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define REFRESH 0.1 /* seconds between the driver's own readings */
#define MIB 1048576.0

struct nvmlGpmSample_st {
    double at, busy, memory_util, pcie_tx, pcie_rx, nvlink_tx, nvlink_rx;
};

static bool supported(const struct call *call)
{
    const struct device *gpu = &call->gpu->device;
    if (!isnan(gpu->number[GPM]))
        return gpu->number[GPM] != 0;
    return !strcmp(gpu->string[ARCH], "hopper") || !strcmp(gpu->string[ARCH], "blackwell");
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && !support)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && support->version != NVML_GPM_SUPPORT_VERSION)
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result == NVML_SUCCESS)
        support->isSupportedDevice = supported(&call);
    return call_end(&call, result);
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__);
    if (result == NVML_SUCCESS && !sample)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && !(*sample = calloc(1, sizeof **sample)))
        result = NVML_ERROR_MEMORY;
    return call_end(&call, result);
}

/* Freeing works without a driver too: otherwise whoever lost it could only leak. */
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
    if (!sample)
        return NVML_ERROR_INVALID_ARGUMENT;
    free(sample);
    return NVML_SUCCESS;
}

static nvmlReturn_t fill(const struct call *call, const struct device *device, nvmlGpmSample_t sample)
{
    if (!sample)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!supported(call))
        return NVML_ERROR_NOT_SUPPORTED;
    const struct device *gpu = &call->gpu->device;
    double at = floor(load_horizon(device, call->now) / REFRESH) * REFRESH;
    sample->at = at;
    sample->busy = load_integral(device, 0, at);
    sample->memory_util = device->number[MEMORY_UTIL];
    sample->pcie_tx = counter_value(gpu, PCIE_TX, at);
    sample->pcie_rx = counter_value(gpu, PCIE_RX, at);
    sample->nvlink_tx = counter_value(gpu, NVLINK_TX, at) * gpu->number[NVLINKS];
    sample->nvlink_rx = counter_value(gpu, NVLINK_RX, at) * gpu->number[NVLINKS];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = fill(&call, call.device, sample);
    return call_end(&call, result);
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpu_instance, nvmlGpmSample_t sample)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    const struct device *found = NULL;
    for (int i = 0; i < MAX_MIG && call.device->number[MIG_MODE] == 1; i++) {
        if (call.gpu->mig[i].present && call.gpu->mig[i].number[MIG_GI] == gpu_instance)
            found = &call.gpu->mig[i];
    }
    return call_end(&call, found ? fill(&call, found, sample) : NVML_ERROR_NOT_FOUND);
}

/* NAN: this metric is not known here. */
static double metric_value(const struct nvmlGpmSample_st *a, const struct nvmlGpmSample_st *b, unsigned int id)
{
    double seconds = b->at - a->at;
    switch (id) {
    case NVML_GPM_METRIC_GRAPHICS_UTIL:
    case NVML_GPM_METRIC_SM_UTIL: return 100 * (b->busy - a->busy) / seconds;
    case NVML_GPM_METRIC_SM_OCCUPANCY: return 50 * (b->busy - a->busy) / seconds;
    case NVML_GPM_METRIC_DRAM_BW_UTIL: return b->memory_util;
    case NVML_GPM_METRIC_PCIE_TX_PER_SEC: return (b->pcie_tx - a->pcie_tx) / seconds / MIB;
    case NVML_GPM_METRIC_PCIE_RX_PER_SEC: return (b->pcie_rx - a->pcie_rx) / seconds / MIB;
    case NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC: return (b->nvlink_tx - a->nvlink_tx) / seconds / MIB;
    case NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC: return (b->nvlink_rx - a->nvlink_rx) / seconds / MIB;
    default: return NAN;
    }
}

/* Only the first numMetrics entries may be touched: older callers bring a shorter array. */
nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__);
    if (result == NVML_SUCCESS && !get)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && get->version != NVML_GPM_METRICS_GET_VERSION)
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result == NVML_SUCCESS && (!get->sample1 || !get->sample2 || get->numMetrics > NVML_GPM_METRIC_MAX))
        result = NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int i = 0; result == NVML_SUCCESS && i < get->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &get->metrics[i];
        bool apart = get->sample2->at > get->sample1->at;
        double value = apart ? metric_value(get->sample1, get->sample2, metric->metricId) : NAN;
        metric->nvmlReturn = !apart ? NVML_ERROR_NO_DATA : isnan(value) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        metric->value = metric->nvmlReturn == NVML_SUCCESS ? value : 0;
        metric->metricInfo.shortName = metric->metricInfo.longName = metric->metricInfo.unit = NULL;
    }
    return call_end(&call, result);
}
