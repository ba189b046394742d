/* Quantities that add up over time, as exact functions of it. */
#include "stub.h"

#include <math.h>

/* Milliwatt-seconds: the idle power, and on top what the load takes. */
static double power_integral(const struct device *device, double from, double to)
{
    double idle = isnan(device->number[POWER]) ? 0 : device->number[POWER], busy = device->number[POWER_BUSY];
    double joules = idle * (to - from);
    if (!isnan(busy))
        joules += (busy - idle) * load_integral(device, from, to);
    return joules;
}

double power_mean(const struct device *device, double from, double to)
{
    return power_integral(device, from, to) / (to - from);
}

unsigned long long energy_millijoules(const struct device *device, double at)
{
    double since = device->number[ENERGY_SINCE];
    double energy = device->number[ENERGY];
    if (at > since)
        energy += power_integral(device, since, at);
    return energy < 0 ? 0 : (unsigned long long)energy;
}

/* OFFSET RATE SINCE, as three numbers one after another. */
double counter_value(const struct device *device, enum number offset, double at)
{
    const double *number = &device->number[offset];
    return number[0] + number[1] * fmax(0, at - number[2]);
}
