/* What a device is: names, numbers and settings that do not change by the second. */
#include "stub.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS) {
        char text[2 * STRING_SIZE + 8];
        snprintf(text, sizeof text, "%s%s%s", call.gpu->device.string[NAME], call.mig_index < 0 ? "" : " MIG ",
                 call.mig_index < 0 ? "" : call.device->string[PROFILE]);
        result = copy_string(text, name, length);
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_string(call.device->string[UUID], uuid, length);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_string(call.device->string[SERIAL], serial, length);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS)
        result = copy_number(&call, MINOR, minor);
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && !index)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *index = (unsigned int)(call.mig_index < 0 ? call.gpu_index : call.mig_index);
    return call_end(&call, result);
}

static nvmlReturn_t pci_info(const char *function, nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, function, device);
    if (result == NVML_SUCCESS && !pci)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        memset(pci, 0, sizeof *pci);
        const char *id = call.device->string[BUS_ID];
        if (sscanf(id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
            result = NVML_ERROR_UNKNOWN;
        snprintf(pci->busId, sizeof pci->busId, "%.31s", id);
        snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
                 pci->device & 0xff);
        pci->pciDeviceId = 0x233010de;
        pci->pciSubSystemId = 0x16c110de;
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) { return pci_info(__func__, device, pci); }
nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) { return pci_info(__func__, device, pci); }
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) { return pci_info(__func__, device, pci); }

static const struct {
    const char *name;
    nvmlDeviceArchitecture_t arch;
    int major, minor;
} architectures[] = {
    {"volta", NVML_DEVICE_ARCH_VOLTA, 7, 0},   {"turing", NVML_DEVICE_ARCH_TURING, 7, 5},
    {"ampere", NVML_DEVICE_ARCH_AMPERE, 8, 0}, {"ada", NVML_DEVICE_ARCH_ADA, 8, 9},
    {"hopper", NVML_DEVICE_ARCH_HOPPER, 9, 0}, {"blackwell", NVML_DEVICE_ARCH_BLACKWELL, 10, 0},
    {"unknown", NVML_DEVICE_ARCH_UNKNOWN, 0, 0},
};

static size_t architecture(const struct call *call)
{
    size_t i = 0, last = sizeof architectures / sizeof *architectures - 1;
    while (i < last && strcmp(call->gpu->device.string[ARCH], architectures[i].name))
        i++;
    return i;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *arch)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && !arch)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *arch = architectures[architecture(&call)].arch;
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && (!major || !minor))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        *major = architectures[architecture(&call)].major;
        *minor = architectures[architecture(&call)].minor;
    }
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    struct call call;
    nvmlReturn_t result = call_begin_gpu(&call, __func__, device);
    if (result == NVML_SUCCESS && !mode)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *mode = NVML_FEATURE_ENABLED;
    return call_end(&call, result);
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    struct call call;
    nvmlReturn_t result = call_begin_device(&call, __func__, device);
    if (result == NVML_SUCCESS && !mode)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *mode = NVML_COMPUTEMODE_DEFAULT;
    return call_end(&call, result);
}
