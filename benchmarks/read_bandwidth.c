/* read_bandwidth THREADS MIB: GB/s at which THREADS read MIB of memory, again and again; the best of many rounds.
 *
 * Shares nothing with recycle_onnx.doctor.bandwidth but the question: a round is a number of bytes, not a time, and
 * threads start and end it together at barriers.
 *
 *     cc -O3 -march=native -pthread read_bandwidth.c -o read_bandwidth
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { ROUNDS = 200 };
static const size_t SLICE = 16 << 20; /* bytes of a thread in a round */

static uint64_t *data;
static size_t words;
static int threads;
static pthread_barrier_t gate;
static double started[256], ended[256], best = 1e9;
static volatile uint64_t sink;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

static uint64_t sum(const uint64_t *from, size_t count) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 32 <= count; i += 32)
        for (size_t j = 0; j < 8; j++) {
            a += from[i + j];
            b += from[i + 8 + j];
            c += from[i + 16 + j];
            d += from[i + 24 + j];
        }
    return a + b + c + d;
}

/* From the first thread's start to the last one's end. */
static void keep_best(void) {
    double from = started[0], to = ended[0];
    for (int i = 1; i < threads; i++) {
        if (started[i] < from) from = started[i];
        if (ended[i] > to) to = ended[i];
    }
    if (to - from < best) best = to - from;
}

static void *work(void *argument) {
    size_t index = (size_t)argument, part = words / threads, slice = SLICE / sizeof *data;
    if (slice > part) slice = part;
    const uint64_t *own = data + index * part;
    uint64_t total = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&gate);
        started[index] = now();
        total += sum(own + round % (part / slice) * slice, slice);
        ended[index] = now();
        pthread_barrier_wait(&gate);
        if (index == 0) keep_best();
    }
    sink = total;
    return NULL;
}

int main(int argc, char **argv) {
    threads = argc > 1 ? atoi(argv[1]) : 1;
    size_t bytes = (size_t)(argc > 2 ? atoi(argv[2]) : 256) << 20;
    if (threads < 1 || threads > 256 || bytes == 0) return 2;
    words = bytes / sizeof *data;
    data = aligned_alloc(1 << 21, bytes);
    if (!data) return 1;
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE); /* as numpy does */
#endif
    memset(data, 1, bytes);
    pthread_t ids[256];
    pthread_barrier_init(&gate, NULL, threads);
    for (size_t i = 0; i < (size_t)threads; i++) pthread_create(&ids[i], NULL, work, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    size_t part = bytes / threads;
    printf("%.3f\n", (double)threads * (part < SLICE ? part : SLICE) / best / 1e9);
    return 0;
}
