/* A library that speaks as much of CUDA's driver API as checkpointing a process takes, and has no GPU.
 *
 * The card is a file of slots that programs map: what they have there is really there, is gone from it when they are checkpointed,
 * and comes back, perhaps into other slots, at the same addresses. As with the real driver a thread of the program's own does that,
 * so a frozen program cannot be moved; calls of a locked one wait. One mapped file (FAKE_LIBCUDA), whose layout `__init__.py` declares
 * as well, says which processes there are, and how a call fails. Where FAKE_NVML is set, the fake NVML library counts the slots.
 * Names, numbers and layouts of the interface are NVIDIA's (cuda.h); -DOLD leaves out what drivers before 570 did not have.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../fake_nvml/control.h"

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef struct { unsigned int timeoutMs, reserved0; uint64_t reserved1[7]; } CUcheckpointLockArgs;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_INITIALIZED = 3,
       CUDA_ERROR_ILLEGAL_STATE = 401, CUDA_ERROR_NOT_READY = 600, CUDA_ERROR_NOT_SUPPORTED = 801, CUDA_ERROR_UNKNOWN = 999 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum { NO_OP, LOCK, CHECKPOINT, RESTORE, UNLOCK };

#define MOST_PROGRAMS 8
#define SLOTS 64
#define SLOT_BYTES (64 << 10)

struct program { double pid, state, asked, result, calls; };

struct cuda {
    double result[5]; /* what an operation answers instead of being done; 0: it is done */
    double hangs[5], crashes[5]; /* whoever asks for it hangs, or dies */
    double breaks[5]; /* it leaves the program FAILED */
    double entangled; /* as with NCCL: nothing is answered about one process while another one is not RUNNING */
    double slot_bytes; /* what a slot counts for on the NVML device */
    double owner[SLOTS];
    double done[5]; /* how often each was done */
    struct program program[MOST_PROGRAMS];
};

static struct cuda *cuda;
static unsigned char *card;
static struct control *nvml;
static struct program *self;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static struct { void *at; int slots; void *host; } held[SLOTS];
static int holds;

static void nap(void) { nanosleep(&(struct timespec){0, 1000000}, NULL); }

static void *mapped(const char *variable, size_t bytes) {
    const char *path = getenv(variable);
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    return at == MAP_FAILED ? NULL : at;
}

static int card_file(void) {
    const char *path = getenv("FAKE_LIBCUDA_CARD");
    return path ? open(path, O_RDWR | O_CLOEXEC) : -1;
}

static void show(struct program *p) {
    if (!nvml) return;
    double sum = 0;
    for (int i = 0; i < SLOTS; i++) sum += cuda->owner[i] == p->pid ? cuda->slot_bytes : 0;
    struct process *shown = &nvml->device[0].processes[p - cuda->program];
    nvml->device[0].counts_processes = 1;
    shown->pid = p->pid;
    shown->bytes = sum;
}

/* Puts `slots` of the card at `at`, or anywhere where that is NULL. */
static void *take(void *at, int slots) {
    for (int first = 0; first + slots <= SLOTS; first++) {
        int free = 0;
        while (free < slots && (!cuda->owner[first + free] || kill((pid_t)cuda->owner[first + free], 0))) free++;
        if (free < slots) continue;
        int fd = card_file();
        void *got = mmap(at, (size_t)slots * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd,
                         (off_t)first * SLOT_BYTES);
        close(fd);
        if (got == MAP_FAILED) return NULL;
        for (int i = 0; i < slots; i++) cuda->owner[first + i] = getpid();
        show(self);
        return got;
    }
    return NULL;
}

static CUresult checkpoint(void) {
    for (int i = 0; i < holds; i++) {
        size_t bytes = (size_t)held[i].slots * SLOT_BYTES;
        held[i].host = malloc(bytes);
        memcpy(held[i].host, held[i].at, bytes);
        memset(held[i].at, 0xDB, bytes);
        mmap(held[i].at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    for (int i = 0; i < SLOTS; i++) if (cuda->owner[i] == getpid()) cuda->owner[i] = 0;
    show(self);
    return CUDA_SUCCESS;
}

static CUresult restore(void) {
    int needed = 0, free_slots = 0;
    for (int i = 0; i < holds; i++) needed += held[i].slots;
    for (int i = 0; i < SLOTS; i++) free_slots += !cuda->owner[i] || kill((pid_t)cuda->owner[i], 0);
    if (needed > free_slots) return CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < holds; i++) {
        if (!take(held[i].at, held[i].slots)) return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(held[i].at, held[i].host, (size_t)held[i].slots * SLOT_BYTES);
        free(held[i].host);
    }
    return CUDA_SUCCESS;
}

static void *serve(void *nothing) {
    for (;;) {
        int asked = (int)self->asked;
        if (asked && cuda->breaks[asked]) {
            self->state = FAILED;
            self->result = CUDA_ERROR_UNKNOWN;
        } else if (asked == LOCK) { /* what was begun is over once the gate is ours */
            pthread_mutex_lock(&gate);
            self->result = CUDA_SUCCESS;
            self->state = LOCKED;
        } else if (asked == UNLOCK) {
            self->result = CUDA_SUCCESS;
            self->state = RUNNING;
            pthread_mutex_unlock(&gate);
        } else if (asked) {
            self->result = asked == CHECKPOINT ? checkpoint() : restore();
            if (!self->result) self->state = asked == CHECKPOINT ? CHECKPOINTED : LOCKED;
        }
        if (asked) self->asked = NO_OP;
        nap();
    }
    return nothing;
}

CUresult cuInit(unsigned int flags) {
    if (cuda) return CUDA_SUCCESS;
    card = mapped("FAKE_LIBCUDA_CARD", (size_t)SLOTS * SLOT_BYTES);
    nvml = mapped("FAKE_NVML", sizeof *nvml);
    cuda = mapped("FAKE_LIBCUDA", sizeof *cuda);
    return flags || !cuda || !card ? CUDA_ERROR_NOT_INITIALIZED : CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult code, const char **name) {
    *name = code == CUDA_ERROR_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
          : code == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : code == CUDA_ERROR_NOT_READY ? "CUDA_ERROR_NOT_READY"
          : code == CUDA_ERROR_ILLEGAL_STATE ? "CUDA_ERROR_ILLEGAL_STATE" : "CUDA_ERROR_UNKNOWN";
    return CUDA_SUCCESS;
}

/* -- what a program calls -------------------------------------------------------------------------------------------- */

CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    if (!cuda) return CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&gate);
    for (struct program *p = cuda->program; !self && p < cuda->program + MOST_PROGRAMS; p++) {
        if (p->pid && !kill((pid_t)p->pid, 0)) continue;
        *p = (struct program){.pid = getpid()};
        self = p;
        pthread_t thread;
        pthread_create(&thread, NULL, serve, NULL);
    }
    held[holds].slots = (int)((bytes + SLOT_BYTES - 1) / SLOT_BYTES);
    held[holds].at = take(NULL, held[holds].slots);
    *at = (CUdeviceptr)(uintptr_t)held[holds].at;
    CUresult result = *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (*at) memset(held[holds].at, 0, bytes);
    holds += !result;
    pthread_mutex_unlock(&gate);
    return result;
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    pthread_mutex_lock(&gate);
    memcpy(to, (void *)(uintptr_t)from, bytes);
    pthread_mutex_unlock(&gate);
    return CUDA_SUCCESS;
}

/* The only kernel: a step that mixes the words at `at`. */
CUresult fakeStep(CUdeviceptr at, size_t words, unsigned int step) {
    pthread_mutex_lock(&gate);
    uint32_t *word = (uint32_t *)(uintptr_t)at;
    for (size_t i = 0; i < words; i++) word[i] = word[i] * 1664525u + 1013904223u + step + word[(i + 1) % words];
    self->calls += 1;
    pthread_mutex_unlock(&gate);
    return CUDA_SUCCESS;
}

/* -- what somebody else calls ---------------------------------------------------------------------------------------- */
#ifndef OLD
static struct program *found(int pid) {
    for (struct program *p = cuda->program; p < cuda->program + MOST_PROGRAMS; p++) {
        if ((int)p->pid == pid) return p;
        while (cuda->entangled && p->pid && p->state != RUNNING) nap();
    }
    return NULL;
}

static CUresult ask(int pid, int operation, int from, unsigned int timeout_ms) {
    if (!cuda) return CUDA_ERROR_NOT_INITIALIZED;
    struct program *p = found(pid);
    if (!p) return CUDA_ERROR_INVALID_VALUE;
    while (cuda->hangs[operation]) nap();
    if (cuda->crashes[operation]) abort();
    if (cuda->result[operation]) return (CUresult)cuda->result[operation];
    if (p->state != from) return CUDA_ERROR_ILLEGAL_STATE;
    p->asked = operation;
    for (unsigned int waited = 0; p->asked; waited++) {
        if (kill(pid, 0)) return CUDA_ERROR_UNKNOWN;
        if (timeout_ms && waited > timeout_ms) {
            p->asked = NO_OP;
            return CUDA_ERROR_NOT_READY;
        }
        nap();
    }
    cuda->done[operation] += 1;
    return (CUresult)p->result;
}

CUresult cuCheckpointProcessGetState(int pid, int *state) {
    if (!cuda) return CUDA_ERROR_NOT_INITIALIZED;
    struct program *p = found(pid);
    if (!p) return CUDA_ERROR_INVALID_VALUE;
    *state = (int)p->state;
    return CUDA_SUCCESS;
}

CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args) {
    for (int i = 0; args && i < 7; i++) if (args->reserved0 || args->reserved1[i]) return CUDA_ERROR_INVALID_VALUE;
    return ask(pid, LOCK, RUNNING, args ? args->timeoutMs : 0);
}

CUresult cuCheckpointProcessCheckpoint(int pid, void *args) {
    return args ? CUDA_ERROR_INVALID_VALUE : ask(pid, CHECKPOINT, LOCKED, 0);
}

CUresult cuCheckpointProcessRestore(int pid, void *args) {
    return args ? CUDA_ERROR_INVALID_VALUE : ask(pid, RESTORE, CHECKPOINTED, 0);
}

CUresult cuCheckpointProcessUnlock(int pid, void *args) {
    return args ? CUDA_ERROR_INVALID_VALUE : ask(pid, UNLOCK, LOCKED, 0);
}
#endif
