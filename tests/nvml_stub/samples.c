/* Utilisation as the driver derives it from the load: a sample for each whole period, in a ring. */
#include "stub.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Whole percent, or whatever a test wants the driver to say instead. */
static double sample_value(const struct device *device, nvmlSamplingType_t type, long long index)
{
    const double *number = device->number;
    double period = number[SAMPLE_PERIOD], end = (double)index * period;
    if (type == NVML_TOTAL_POWER_SAMPLES)
        return floor(power_mean(device, end - period, end));
    if (fault_chance((uint64_t)number[SAMPLE_SEED] + 1, (uint64_t)index) < number[SAMPLE_BAD])
        return number[SAMPLE_BAD_VALUE];
    if (type == NVML_MEMORY_UTILIZATION_SAMPLES)
        return number[MEMORY_UTIL];
    double percent = 100 * load_integral(device, end - period, end) / period;
    return number[SAMPLE_FLOOR] != 0 ? floor(percent + 1e-6) : floor(percent + 0.5);
}

/* Microseconds of the clock that the state names. The distance between clocks is taken once: a correction of the wall
 * clock must not move samples that were handed out already. */
unsigned long long sample_stamp(const struct device *device, double at)
{
    static double epoch, boot;
    state_lock();
    if (epoch == 0) {
        epoch = clock_now(CLOCK_REALTIME) - clock_now(CLOCK_MONOTONIC);
        boot = clock_now(CLOCK_BOOTTIME) - clock_now(CLOCK_MONOTONIC);
    }
    state_unlock();
    const char *clock = device->string[SAMPLE_CLOCK];
    double offset = !strcmp(clock, "epoch") ? epoch : !strcmp(clock, "boot") ? boot : 0;
    double stamp = (at + offset + device->number[SAMPLE_SHIFT]) * 1e6;
    return stamp < 1 ? 1 : (unsigned long long)llround(stamp);
}

static void set_value(const struct device *device, nvmlSample_t *sample, double value)
{
    memset(&sample->sampleValue, 0, sizeof sample->sampleValue);
    if (!strcmp(device->string[SAMPLE_TYPE], "double"))
        sample->sampleValue.dVal = value;
    else if (!strcmp(device->string[SAMPLE_TYPE], "ull"))
        sample->sampleValue.ullVal = (unsigned long long)value;
    else
        sample->sampleValue.uiVal = (unsigned int)value;
}

static nvmlValueType_t value_type(const struct device *device)
{
    if (!strcmp(device->string[SAMPLE_TYPE], "double"))
        return NVML_VALUE_TYPE_DOUBLE;
    if (!strcmp(device->string[SAMPLE_TYPE], "ull"))
        return NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    return NVML_VALUE_TYPE_UNSIGNED_INT;
}

/* A ring that was not put in order starts anywhere: turn it by a third. */
static void turn(nvmlSample_t *samples, size_t count)
{
    size_t by = count / 3;
    for (size_t i = 0; i < by; i++) {
        nvmlSample_t first = samples[0];
        memmove(samples, samples + 1, (count - 1) * sizeof *samples);
        samples[count - 1] = first;
    }
}

/* The samples newer than `seen`; *count of them, in memory that the caller frees. */
static nvmlSample_t *collect(const struct call *call, nvmlSamplingType_t type, unsigned long long seen, size_t *count)
{
    const struct device *device = call->device;
    const double *number = device->number;
    double period = number[SAMPLE_PERIOD];
    long long last = (long long)floor(load_horizon(device, call->now) / period);
    long long first = last - (long long)number[SAMPLE_RING] + 1;
    double begin = ceil(load_begin(device) / period) + 1;
    if (begin > (double)first)
        first = begin > (double)last ? last + 1 : (long long)begin;
    nvmlSample_t *samples = calloc(3 * (size_t)(last - first + 2), sizeof *samples);
    bool idle = true;
    *count = 0;
    for (long long i = first; samples && i <= last; i++) {
        unsigned long long stamp = sample_stamp(device, (double)i * period);
        double value = sample_value(device, type, i);
        idle = idle && value == 0;
        if (stamp <= seen)
            continue;
        int copies = 1 + (fault_chance((uint64_t)number[SAMPLE_SEED] + 2, (uint64_t)i) < number[SAMPLE_DUPLICATE]);
        for (int k = 0; k < copies; k++) {
            samples[*count].timeStamp = stamp;
            set_value(device, &samples[(*count)++], value);
        }
        if (fault_chance((uint64_t)number[SAMPLE_SEED] + 3, (uint64_t)i) < number[SAMPLE_ZERO])
            set_value(device, &samples[(*count)++], 100); /* a slot never filled: stamp 0 */
    }
    if (number[SAMPLE_IDLE_NOT_FOUND] != 0 && idle)
        *count = 0;
    if (number[SAMPLE_UNSORTED] != 0 && samples)
        turn(samples, *count);
    return samples;
}

static nvmlReturn_t get_samples(const struct call *call, nvmlSamplingType_t type, unsigned long long seen,
                                nvmlValueType_t *kind, unsigned int *count, nvmlSample_t *samples)
{
    if (!count || !kind || (samples && *count == 0) || type >= NVML_SAMPLINGTYPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (type != NVML_TOTAL_POWER_SAMPLES && call->gpu->device.number[MIG_MODE] == 1)
        return NVML_ERROR_NOT_SUPPORTED;
    if (type > NVML_MEMORY_UTILIZATION_SAMPLES)
        return NVML_ERROR_NOT_SUPPORTED;
    *kind = value_type(call->device);
    if (!samples) { /* the question of size: the whole ring, whatever was seen */
        *count = (unsigned int)(3 * (call->device->number[SAMPLE_RING] + 1));
        return NVML_SUCCESS;
    }
    size_t found;
    nvmlSample_t *fresh = collect(call, type, seen, &found);
    if (!fresh)
        return NVML_ERROR_MEMORY;
    if (*count > found)
        *count = (unsigned int)found;
    memcpy(samples, fresh, *count * sizeof *samples);
    free(fresh);
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long seen,
                                  nvmlValueType_t *kind, unsigned int *count, nvmlSample_t *samples)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = get_samples(&call, type, seen, kind, count, samples);
    return call_end(&call, result);
}

/* Only the last period counts, which is what makes polling this alias against the load. */
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !rates)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && call.device->number[MIG_MODE] == 1)
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS) {
        const double *number = call.device->number;
        long long last = (long long)floor(load_horizon(call.device, call.now) / number[SAMPLE_PERIOD]);
        double gpu = number[RATES_GPU], memory = number[RATES_MEMORY];
        if (isnan(gpu))
            gpu = sample_value(call.device, NVML_GPU_UTILIZATION_SAMPLES, last);
        if (isnan(memory))
            memory = sample_value(call.device, NVML_MEMORY_UTILIZATION_SAMPLES, last);
        rates->gpu = (unsigned int)gpu;
        rates->memory = (unsigned int)memory;
    }
    return call_end(&call, result);
}
