/* The state file: read again whenever it was replaced, and shared by the calls that are under way. */
#include "stub.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct state *current;
static struct stat seen;

void state_lock(void) { pthread_mutex_lock(&mutex); }
void state_unlock(void) { pthread_mutex_unlock(&mutex); }

/* A fork while another thread holds the mutex would leave it locked in the child for ever. The mutex is never held
 * during a hang, so waiting for it here is short. */
__attribute__((constructor)) static void state_start(void)
{
    pthread_atfork(state_lock, state_unlock, state_unlock);
}

__attribute__((destructor)) static void state_stop(void)
{
    state_lock();
    struct state *last = current;
    current = NULL;
    state_unlock();
    if (last)
        state_release(last);
}

static char *read_all(int file, size_t size)
{
    char *text = malloc(size + 1);
    size_t length = 0;
    ssize_t count;
    while (text && length < size && (count = read(file, text + length, size - length)) > 0)
        length += (size_t)count;
    if (text)
        text[length] = '\0';
    return text;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static void reload(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
        if (file >= 0)
            close(file);
        return;
    }
    char *text = read_all(file, (size_t)status.st_size);
    close(file);
    struct state *fresh = text ? state_parse(text, path) : NULL;
    free(text);
    if (!fresh)
        return;
    if (current)
        state_release(current);
    current = fresh;
    seen = status;
}

struct state *state_acquire(void)
{
    const char *path = getenv("NVML_STUB_STATE");
    struct stat status;
    if (!path || stat(path, &status) != 0)
        return NULL;
    state_lock();
    if (!current || !same_file(&status, &seen))
        reload(path);
    struct state *state = current;
    if (state)
        atomic_fetch_add(&state->references, 1);
    state_unlock();
    return state;
}

void state_release(struct state *state)
{
    if (atomic_fetch_sub(&state->references, 1) == 1)
        state_free(state);
}
