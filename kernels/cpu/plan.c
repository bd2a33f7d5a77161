/* Runs plans: instructions one after another, for one row of a sampler's table after another. */
#include "clock.h"
#include "plan.h"
#include "vectors.h"
#include <pthread.h>
#include <stdatomic.h>

/* Each row of a table may have an address of its own: base + row step, in bytes; in a ring of so many places, if not 0,
 * that of the row before. */
struct operand {
    char *base;
    int64_t step, places;
};

static float *address(const struct operand *operand, int64_t row) {
    if (operand->places) row = (row + operand->places - 1) % operand->places;
    return (float *)(operand->base + row * operand->step);
}

struct instruction {
    int64_t kernel;
    const union number *number;
    struct operand operand[OPERANDS];
};

struct worker {
    const struct instruction *code;
    int64_t count;
    float *space;
};

typedef void function(const struct call *);
typedef int64_t measure(const union number *);
#define FUNCTION(name) name,
#define MEASURE(name) name##_space,
#define NAME(name) #name,
static function *const functions[] = {KERNELS(FUNCTION)};
static measure *const measures[] = {KERNELS(MEASURE)};
static const char *const names[] = {KERNELS(NAME)};
enum { COUNT = sizeof names / sizeof *names, SPINS = 4000 };

EXPORTED int64_t operands(void) { return OPERANDS; }
EXPORTED int64_t vector_width(void) { return VL; }

/* The number of the kernel of that name, or -1. */
EXPORTED int64_t find_kernel(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (!strcmp(name, names[i])) return i;
    return -1;
}

EXPORTED int64_t kernel_space(int64_t kernel, const union number *number) { return measures[kernel](number); }

/* One call, now and on this thread, for one row; returns 0. */
EXPORTED int64_t run_call(int64_t kernel, const union number *number, float *const *at, float *space, int64_t row) {
    functions[kernel](&(struct call){.at = at, .number = number, .space = space, .row = row, .parts = 1});
    return 0;
}

struct team {
    const struct worker *workers;
    int threads, shared;
    int64_t first, rows;
    double deadline;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int64_t furthest, stop; /* rows below `furthest` were begun, and those below `stop` will be; both under the lock */
    atomic_int arrived, phase;
};

/* Whether a worker shall run a row. After the deadline none begins that no worker has begun, but the first. */
static int begin(struct team *team, int64_t row) {
    pthread_mutex_lock(&team->lock);
    if (team->stop == team->rows && row > team->first && seconds_now() > team->deadline)
        team->stop = row > team->furthest ? row : team->furthest;
    const int wanted = row < team->stop;
    if (wanted && row >= team->furthest) team->furthest = row + 1;
    pthread_mutex_unlock(&team->lock);
    return wanted;
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait for all of the team: awake for as long as a short operation takes, then asleep, so that on a busy machine a
 * thread that waits takes no time from one that works. */
static void meet(struct team *team) {
    const int phase = atomic_load(&team->phase);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->threads) {
        atomic_store(&team->arrived, 0);
        pthread_mutex_lock(&team->lock);
        atomic_store(&team->phase, phase + 1);
        pthread_cond_broadcast(&team->moved);
        pthread_mutex_unlock(&team->lock);
        return;
    }
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
        pause_briefly();
    }
    pthread_mutex_lock(&team->lock);
    while (atomic_load(&team->phase) == phase) pthread_cond_wait(&team->moved, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

static void work(struct team *team, int index) {
    const struct worker *worker = team->workers + index;
    const int together = team->shared && team->threads > 1;
    for (int64_t row = team->first; row < team->rows && begin(team, row); row++)
        for (int64_t i = 0; i < worker->count; i++) {
            const struct instruction *one = worker->code + i;
            float *at[OPERANDS];
            for (int j = 0; j < OPERANDS; j++) at[j] = address(one->operand + j, row);
            const struct call call = {.at = at,
                                      .number = one->number,
                                      .space = worker->space,
                                      .row = row,
                                      .part = together ? index : 0,
                                      .parts = together ? team->threads : 1};
            functions[one->kernel](&call);
            if (together) meet(team);
        }
}

struct member {
    struct team *team;
    int index;
    pthread_t thread;
};

static void *enter(void *given) {
    struct member *member = given;
    pthread_mutex_lock(&member->team->lock); /* held until the team is complete */
    pthread_mutex_unlock(&member->team->lock);
    work(member->team, member->index);
    return 0;
}

enum { MOST_THREADS = 256 }; /* threads */

/* Run rows first .. rows - 1, fewer if they take longer than `seconds`, at least one; returns where it stopped. Where
 * `shared`, the workers run one plan together and each has its share of every instruction; else each runs its own. A
 * thread lives as long as the call, so that a forked process lacks none. */
EXPORTED int64_t run_plan(const struct worker *workers, int64_t threads, int64_t shared, int64_t first, int64_t rows,
                 double seconds) {
    struct member members[MOST_THREADS];
    struct team team = {.workers = workers, .shared = (int)shared, .first = first, .rows = rows};
    int made = 1;
    team.deadline = seconds_now() + seconds;
    team.stop = rows, team.furthest = first;
    pthread_mutex_init(&team.lock, 0);
    pthread_cond_init(&team.moved, 0);
    pthread_mutex_lock(&team.lock);
    for (; made < threads && made < MOST_THREADS; made++) {
        members[made] = (struct member){.team = &team, .index = made};
        if (pthread_create(&members[made].thread, 0, enter, &members[made])) break;
    }
    team.threads = made; /* if the system gives fewer, these do it all */
    pthread_mutex_unlock(&team.lock);
    work(&team, 0);
    for (int i = 1; i < made; i++) pthread_join(members[i].thread, 0);
    for (int i = made; !shared && i < threads; i++) work(&team, i);
    pthread_mutex_destroy(&team.lock);
    pthread_cond_destroy(&team.moved);
    return team.stop;
}
