/* The load that a device is driven with: an exact function of CLOCK_MONOTONIC, so that no thread is needed, a fork
 * cannot upset it, and the ring has its history however long nobody asked. */
#include "stub.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double clock_now(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* "0:100 0.3:0 1.5:40": seconds after the segment's beginning, and percent. */
static bool steps_parse(struct segment *segment, const char *text)
{
    size_t room = 0;
    while (*text) {
        char *end;
        double at = strtod(text, &end);
        if (end == text)
            break;
        if (*end != ':')
            return false;
        double level = strtod(end + 1, &end) / 100;
        if (segment->step_count == room) {
            room = room ? room * 2 : 64;
            segment->steps = realloc(segment->steps, room * sizeof *segment->steps);
            if (!segment->steps)
                abort();
        }
        segment->steps[segment->step_count++] = (struct step){at, level};
        text = end + strspn(end, " \t");
    }
    return segment->step_count > 0;
}

/* SINCE KIND [options]; see README.md. */
bool segment_parse(struct segment *segment, const char *text)
{
    char *end, kind[16] = "";
    memset(segment, 0, sizeof *segment);
    segment->since = strtod(text, &end);
    if (end == text)
        return false;
    end += strspn(end, " \t");
    size_t length = strcspn(end, " \t");
    if (length >= sizeof kind)
        return false;
    memcpy(kind, end, length);
    const char *rest = end + length + strspn(end + length, " \t");
    char clock[16] = "";
    if (option_text(rest, "clock", clock, sizeof clock) && !strcmp(clock, "realtime"))
        segment->since -= clock_now(CLOCK_REALTIME) - clock_now(CLOCK_MONOTONIC);
    segment->level = option(rest, "level", 100) / 100;
    segment->low = option(rest, "low", 0) / 100;
    if (!strcmp(kind, "const")) {
        segment->kind = LOAD_CONST;
        return true;
    }
    if (!strcmp(kind, "square")) {
        segment->kind = LOAD_SQUARE;
        segment->period = option(rest, "period", 1);
        segment->duty = option(rest, "duty", 0.5);
        segment->phase = option(rest, "phase", 0);
        return segment->period > 0;
    }
    if (!strcmp(kind, "steps")) {
        segment->kind = LOAD_STEPS;
        return steps_parse(segment, rest);
    }
    if (!strcmp(kind, "follow")) {
        segment->kind = LOAD_FOLLOW;
        segment->cores = option(rest, "cores", 1);
        segment->source = follow_source(rest);
        return segment->source >= 0 && segment->cores > 0;
    }
    return false;
}

/* Integral of a square wave from its phase 0 to `x`. */
static double square_until(const struct segment *segment, double x)
{
    double turns = floor(x / segment->period);
    double within = x - turns * segment->period;
    double on = segment->duty * segment->period;
    double full = on * segment->level + (segment->period - on) * segment->low;
    double part = fmin(within, on) * segment->level + fmax(0, within - on) * segment->low;
    return turns * full + part;
}

static double steps_integral(const struct segment *segment, double from, double to)
{
    double sum = 0;
    for (size_t i = 0; i < segment->step_count; i++) {
        double begin = segment->since + segment->steps[i].at;
        double end = i + 1 < segment->step_count ? segment->since + segment->steps[i + 1].at : INFINITY;
        double overlap = fmin(end, to) - fmax(begin, from);
        if (overlap > 0)
            sum += overlap * segment->steps[i].level;
    }
    return sum;
}

static double segment_integral(const struct segment *segment, double from, double to)
{
    switch (segment->kind) {
    case LOAD_CONST:
        return (to - from) * segment->level;
    case LOAD_SQUARE: {
        double zero = segment->since - segment->phase;
        return square_until(segment, to - zero) - square_until(segment, from - zero);
    }
    case LOAD_STEPS:
        return steps_integral(segment, from, to);
    case LOAD_FOLLOW:
        return fmin(to - from, follow_integral(segment->source, from, to) / segment->cores);
    }
    return 0;
}

double load_integral(const struct device *device, double from, double to)
{
    double sum = 0;
    for (size_t i = 0; i < device->segment_count; i++) {
        const struct segment *segment = &device->segments[i];
        double end = i + 1 < device->segment_count ? device->segments[i + 1].since : INFINITY;
        double begin = fmax(segment->since, from);
        end = fmin(end, to);
        if (end > begin)
            sum += segment_integral(segment, begin, end);
    }
    return sum;
}

double load_begin(const struct device *device)
{
    if (device->segment_count == 0 || device->segments[0].kind != LOAD_FOLLOW)
        return -INFINITY;
    return follow_first(device->segments[0].source);
}

double load_horizon(const struct device *device, double now)
{
    if (device->segment_count == 0)
        return now;
    const struct segment *last = &device->segments[device->segment_count - 1];
    return last->kind == LOAD_FOLLOW ? fmin(now, follow_last(last->source)) : now;
}
