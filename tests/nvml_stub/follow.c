/* CPU time as load. Each source keeps points (time, CPU seconds so far); between two points the load is their mean
 * slope, so the integral is exact whenever the caller looks, and no thread has to survive a fork. */
#include "stub.h"

#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_SOURCES 32
#define POINTS 4096
#define SPARE 10 /* seconds of `idle=` that are kept: housekeeping comes in bursts */
#define SHORTEST 0.005 /* seconds between points: one sampler round makes a dozen calls */

struct point {
    double at, seconds;
};

struct source {
    char spec[512];
    double raw; /* as it was read last */
    double spare; /* seconds of housekeeping that may come yet without counting as load */
    struct point points[POINTS];
    size_t count; /* ever; the last POINTS are kept */
};

static struct source *sources[MAX_SOURCES];
static int source_count;

/* Called while the state is read, under its lock. */
int follow_source(const char *spec)
{
    for (int i = 0; i < source_count; i++) {
        if (!strcmp(sources[i]->spec, spec))
            return i;
    }
    if (source_count == MAX_SOURCES || strlen(spec) >= sizeof sources[0]->spec)
        return -1;
    struct source *source = calloc(1, sizeof *source);
    if (!source)
        return -1;
    snprintf(source->spec, sizeof source->spec, "%s", spec);
    sources[source_count] = source;
    return source_count++;
}

/* The first number of a file, or the one after `token`. */
static double number_in(const char *path, const char *token, double scale)
{
    char text[1024];
    FILE *file = fopen(path, "re");
    if (!file)
        return NAN;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    const char *at = token ? strstr(text, token) : text;
    return at && length ? strtod(at + (token ? strlen(token) : 0), NULL) * scale : NAN;
}

/* This process's path in the hierarchy whose line in /proc/self/cgroup names `controller` ("" in version 2). */
static void cgroup_path(const char *controller, char *path, size_t size)
{
    char line[1024], names[256];
    FILE *file = fopen("/proc/self/cgroup", "re");
    *path = '\0';
    while (file && fgets(line, sizeof line, file)) {
        char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        if (!second)
            continue;
        snprintf(names, sizeof names, ",%.*s,", (int)(second - first - 1), first + 1);
        char wanted[64];
        snprintf(wanted, sizeof wanted, ",%s,", controller);
        if (strstr(names, wanted))
            snprintf(path, size, "%.*s", (int)strcspn(second + 1, "\n"), second + 1);
    }
    if (file)
        fclose(file);
    if (!strcmp(path, "/"))
        *path = '\0';
}

/* Inside a container the mount's root is the container's own group, whatever path /proc names: hence both. */
static double cgroup_seconds(void)
{
    static const char *const mounts[] = {"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"};
    char own[512], path[700];
    double seconds;
    for (int whole = 0; whole < 2; whole++) {
        cgroup_path("cpuacct", own, sizeof own);
        for (int i = 0; i < 2; i++) {
            snprintf(path, sizeof path, "%s%s/cpuacct.usage", mounts[i], whole ? "" : own);
            if (!isnan(seconds = number_in(path, NULL, 1e-9)))
                return seconds;
        }
        cgroup_path("", own, sizeof own);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.stat", whole ? "" : own);
        if (!isnan(seconds = number_in(path, "usage_usec ", 1e-6)))
            return seconds;
    }
    return NAN;
}

/* CPU seconds of one process and of its children that it has waited for; its group in *group. */
static double process_seconds(long pid, long *group)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NAN;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    unsigned long ticks[4];
    const char *after = strrchr(text, ')'); /* the name before it may hold anything */
    if (!after || sscanf(after + 1, " %*c %*d %ld %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %lu %lu", group, &ticks[0],
                         &ticks[1], &ticks[2], &ticks[3]) != 5)
        return NAN;
    return (double)(ticks[0] + ticks[1] + ticks[2] + ticks[3]) / (double)sysconf(_SC_CLK_TCK);
}

/* group < 0: every process that can be seen */
static double group_seconds(long group)
{
    double sum = 0;
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        long own = 0;
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        double seconds = process_seconds(atol(entry->d_name), &own);
        if (!isnan(seconds) && (group < 0 || own == group))
            sum += seconds;
    }
    if (directory)
        closedir(directory);
    return sum;
}

static double source_seconds(const char *spec)
{
    char path[512];
    long group;
    if (option_text(spec, "file", path, sizeof path))
        return number_in(path, NULL, option(spec, "scale", 1));
    if (option(spec, "pid", 0) > 0)
        return process_seconds((long)option(spec, "pid", 0), &group);
    if (!strncmp(spec, "pgrp", 4))
        return group_seconds((long)option(spec, "pgrp", getpgrp()));
    if (!strncmp(spec, "visible", 7))
        return group_seconds(-1);
    return cgroup_seconds();
}

static struct point *last_point(struct source *source)
{
    return source->count ? &source->points[(source->count - 1) % POINTS] : NULL;
}

static void touch(struct source *source)
{
    struct point *last = last_point(source);
    if (last && clock_now(CLOCK_MONOTONIC) - last->at < SHORTEST)
        return;
    double seconds = source_seconds(source->spec), now = clock_now(CLOCK_MONOTONIC);
    if (isnan(seconds)) {
        if (!last)
            return;
        seconds = source->raw; /* the process is gone: idle */
    }
    double before = last ? last->seconds : 0;
    double more = last ? fmax(0, seconds - source->raw) : 0; /* a group that lost a member does not run backwards */
    double idle = option(source->spec, "idle", 0);
    if (last && idle > 0) {
        source->spare = fmin(source->spare + idle * (now - last->at), idle * SPARE);
        double free = fmin(source->spare, more);
        source->spare -= free;
        more -= free;
    }
    source->points[source->count++ % POINTS] = (struct point){now, before + more};
    source->raw = seconds;
}

static void touch_device(const struct device *device)
{
    for (size_t i = 0; i < device->segment_count; i++) {
        if (device->segments[i].kind == LOAD_FOLLOW)
            touch(sources[device->segments[i].source]);
    }
}

void follow_touch(const struct state *state)
{
    if (source_count == 0)
        return;
    state_lock();
    for (unsigned int i = 0; i < state->gpu_count; i++) {
        touch_device(&state->gpus[i].device);
        for (int k = 0; k < MAX_MIG; k++)
            touch_device(&state->gpus[i].mig[k]);
    }
    state_unlock();
}

/* After a fork "own" means something else, so the history is no longer this process's. */
void follow_restart(void)
{
    state_lock();
    for (int i = 0; i < source_count; i++)
        sources[i]->count = 0;
    state_unlock();
}

static double seconds_at(const struct source *source, double at)
{
    size_t first = source->count > POINTS ? source->count - POINTS : 0, low = first, high = source->count;
    if (source->count == 0)
        return 0;
    while (low < high) { /* the first point later than `at` */
        size_t middle = low + (high - low) / 2;
        if (source->points[middle % POINTS].at <= at)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == first)
        return source->points[first % POINTS].seconds;
    struct point before = source->points[(low - 1) % POINTS];
    if (low == source->count)
        return before.seconds;
    struct point after = source->points[low % POINTS];
    return before.seconds + (after.seconds - before.seconds) * (at - before.at) / (after.at - before.at);
}

double follow_integral(int source, double from, double to)
{
    state_lock();
    double seconds = seconds_at(sources[source], to) - seconds_at(sources[source], from);
    state_unlock();
    return seconds;
}

double follow_first(int source)
{
    state_lock();
    const struct source *followed = sources[source];
    size_t first = followed->count > POINTS ? followed->count - POINTS : 0;
    double at = followed->count ? followed->points[first % POINTS].at : INFINITY;
    state_unlock();
    return at;
}

double follow_last(int source)
{
    state_lock();
    struct point *last = last_point(sources[source]);
    double at = last ? last->at : -INFINITY;
    state_unlock();
    return at;
}
