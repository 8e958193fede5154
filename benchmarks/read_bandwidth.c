/* read_bandwidth THREADS MIB: GB/s at which THREADS read MIB of memory each pass; the best of eight rounds.
 *
 * Shares nothing with recycle_onnx.doctor.bandwidth but the question: threads run whole passes between barriers,
 * and the clock is that of the first thread.
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

enum { ROUNDS = 8 };
static const double ROUND_SECONDS = 0.05;

static uint64_t *data;
static size_t words;
static int threads, passes;
static pthread_barrier_t gate;
static double elapsed;
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

static void *work(void *argument) {
    size_t index = (size_t)argument, count = words / threads;
    uint64_t total = 0;
    pthread_barrier_wait(&gate);
    double started = now();
    for (int pass = 0; pass < passes; pass++) {
        total += sum(data + index * count, count);
        data[index * count] = total; /* no pass is the last one's result */
    }
    pthread_barrier_wait(&gate);
    if (index == 0) elapsed = now() - started;
    sink = total;
    return NULL;
}

static double run(void) {
    pthread_t ids[256];
    pthread_barrier_init(&gate, NULL, threads);
    for (size_t i = 0; i < (size_t)threads; i++) pthread_create(&ids[i], NULL, work, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&gate);
    return elapsed;
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
    passes = 1;
    passes += (int)(ROUND_SECONDS / run());
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double rate = (double)bytes * passes / run() / 1e9;
        if (rate > best) best = rate;
    }
    printf("%.3f\n", best);
    return 0;
}
