/* A library that speaks NVML's binary interface and has no GPU: devices follow a small thermal and memory model.
 *
 * Built by `__init__.py` beside this file into libnvidia-ml.so.1 and found through LD_LIBRARY_PATH. Everything is driven by one
 * mapped file, named by FAKE_NVML, whose layout `__init__.py` declares as well: what a device answers, how warm it gets, how it
 * fails. Names, layouts and version numbers of the interface are NVIDIA's (nvml.h of the package nvidia-nvml-dev); compiled with
 * -DCHECK_AGAINST_HEADER the compiler compares them with that header.
 */
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef CHECK_AGAINST_HEADER
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#else
typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct nvmlEventSet_st *nvmlEventSet_t;
typedef unsigned int nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t, nvmlValueType_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned int sensorType; int temperature; } nvmlTemperature_t;
typedef struct { unsigned int version; int marginTemperature; } nvmlMarginTemperature_t;
typedef union {
    double dVal; int siVal; unsigned int uiVal; unsigned long ulVal; unsigned long long ullVal; long long sllVal;
    unsigned short usVal;
} nvmlValue_t;
typedef struct {
    unsigned int fieldId, scopeId; long long timestamp, latencyUsec; nvmlValueType_t valueType; nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;
typedef struct {
    unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;
typedef struct {
    nvmlDevice_t device; unsigned long long eventType, eventData; unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;
enum {
    NVML_SUCCESS = 0, NVML_ERROR_UNINITIALIZED = 1, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4, NVML_ERROR_INSUFFICIENT_SIZE = 7, NVML_ERROR_TIMEOUT = 10, NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
};
enum { NVML_VALUE_TYPE_UNSIGNED_INT = 1, NVML_VALUE_TYPE_SIGNED_INT = 5 };
enum { NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT = 193, NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT = 194 };
#define nvmlTemperature_v1 0x0100000Cu
#define nvmlMarginTemperature_v1 0x01000008u
#define nvmlEventTypeXidCriticalError 8ULL
#endif

#include "control.h"

static struct control *control;
static int opened;

static double now_s(void) {
    struct timespec t;
    if (control->clock_s >= 0) return control->clock_s;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (t.tv_sec + t.tv_nsec * 1e-9) * control->speed;
}

static double noise(double sigma) { /* sum of uniforms, from a generator that lives in the file: repeatable */
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        control->random = fmod(control->random * 16807.0, 2147483647.0);
        sum += control->random / 2147483647.0;
    }
    return (sum - 6.0) * sigma;
}

static double power_w(const struct device *d) {
    double wanted = d->idle_w + d->duty * (d->full_w - d->idle_w);
    return wanted < d->power_limit_w ? wanted : d->power_limit_w;
}

static void warm(struct device *d) {
    double now = now_s();
    if (d->at_s <= 0) { /* it was idle until now */
        double heat = d->idle_w * d->degrees_per_w;
        d->cooler_c = d->ambient_c + heat * (1 - d->die_fraction);
        d->die_c = heat * d->die_fraction;
        d->at_s = now;
    }
    while (d->at_s < now) {
        double step = now - d->at_s < 0.25 ? now - d->at_s : 0.25;
        double heat = power_w(d) * d->degrees_per_w;
        d->cooler_c += step / d->cooler_s * (d->ambient_c + heat * (1 - d->die_fraction) - d->cooler_c);
        d->die_c += step / (step + d->die_s) * (heat * d->die_fraction - d->die_c);
        d->ambient_c += d->ambient_c_per_h * step / 3600;
        d->at_s += step;
        double slows_at = d->slowdown_c > UNSUPPORTED ? d->slowdown_c
                        : d->limit_c > UNSUPPORTED ? d->limit_c - d->slowdown_margin_c : 1e9;
        if (d->cooler_c + d->die_c >= slows_at) d->slowdowns += 1;
    }
}

static double temperature(struct device *d) {
    warm(d);
    double seen = floor(d->cooler_c + d->die_c + noise(d->noise_c) + 0.5);
    if (d->fault != FAULT_FROZEN) d->frozen_c = seen;
    return d->frozen_c;
}

static double workers_bytes(const struct device *d) {
    return d->frees_of_dead && kill((pid_t)d->worker_pid, 0) ? 0 : d->worker_bytes;
}

static double process_bytes(const struct device *d, int i) {
    return d->counts_processes && kill((pid_t)d->processes[i].pid, 0) ? 0 : d->processes[i].bytes;
}

static double counted_bytes(const struct device *d) { /* of processes that nobody counts among the others */
    double sum = 0;
    for (int i = 0; d->counts_processes && i < MOST_PROCESSES; i++) sum += d->processes[i].pid > 0 ? process_bytes(d, i) : 0;
    return sum;
}

static void misbehave(const struct device *d) {
    if (d->fault == FAULT_HANG) for (;;) pause();
    if (d->fault == FAULT_CRASH) abort();
}

/* The device behind a handle, after its faults; NULL with the code to return. */
static struct device *reach(nvmlDevice_t handle, nvmlReturn_t *code) {
    struct device *d = (struct device *)handle;
    if (!opened) { *code = NVML_ERROR_UNINITIALIZED; return NULL; }
    if (d < control->device || d >= control->device + MOST_DEVICES) { *code = NVML_ERROR_INVALID_ARGUMENT; return NULL; }
    control->calls += 1;
    misbehave(d);
    if (d->fault == FAULT_LOST) { *code = NVML_ERROR_GPU_IS_LOST; return NULL; }
    if (d->fault == FAULT_ERROR) { *code = 999; return NULL; }
    return d;
}

#define REACH(handle) nvmlReturn_t code = NVML_SUCCESS; struct device *d = reach(handle, &code); if (!d) return code
#define NEED(value) if ((value) <= UNSUPPORTED) return NVML_ERROR_NOT_SUPPORTED

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    const char *path = getenv("FAKE_NVML");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    struct stat file;
    if (fd < 0 || fstat(fd, &file) || file.st_size != sizeof *control) return 999;
    if (control) munmap(control, sizeof *control); /* nobody has it open: one process may look at one machine after another */
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (control == MAP_FAILED || control->magic != MAGIC) return 999;
    if (control->init_hangs) for (;;) pause();
    if (control->init_result) return (nvmlReturn_t)control->init_result;
    opened++;
    control->opens += 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    if (!opened) return NVML_ERROR_UNINITIALIZED;
    opened--;
    control->opens -= 1;
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result) { return result == NVML_SUCCESS ? "Success" : "Unknown Error"; }

static nvmlReturn_t text(const char *from, char *to, unsigned int length) {
    if (strlen(from) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, from);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { return text("575.64.03", version, length); }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!opened) return NVML_ERROR_UNINITIALIZED;
    *count = (unsigned int)control->devices;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (!opened) return NVML_ERROR_UNINITIALIZED;
    if (index >= control->devices) return NVML_ERROR_INVALID_ARGUMENT;
    if (control->device[index].fault == FAULT_LOST) return NVML_ERROR_GPU_IS_LOST;
    *device = (nvmlDevice_t)&control->device[index];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    REACH(device);
    if (d->fault == FAULT_GARBAGE) return text("\xff\xfe\x80", name, length);
    return text(d->name, name, length);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    REACH(device);
    return text(d->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    REACH(device);
    if (!d->compute_capability) return NVML_ERROR_NOT_SUPPORTED;
    *major = (int)d->compute_capability;
    *minor = (int)lround(10 * (d->compute_capability - *major));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    REACH(device);
    NEED(d->total_bytes);
    memory->total = (unsigned long long)d->total_bytes;
    memory->used = (unsigned long long)(d->others_bytes + workers_bytes(d) + counted_bytes(d));
    memory->free = memory->total - memory->used;
    if (d->fault == FAULT_GARBAGE) memory->free = ~0ULL;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    REACH(device);
    if (sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
    if (!d->has_temperature) return NVML_ERROR_NOT_SUPPORTED;
    *celsius = d->fault == FAULT_GARBAGE ? 4000000u : (unsigned int)temperature(d);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *asked) {
    REACH(device);
    if (asked->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (!d->has_temperature || d->has_old_temperature_only) return NVML_ERROR_NOT_SUPPORTED;
    asked->temperature = d->fault == FAULT_GARBAGE ? -273 : (int)temperature(d);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t kind, unsigned int *celsius) {
    REACH(device);
    double told = kind == 0 ? d->shutdown_c : kind == 1 ? d->slowdown_c : kind == 3 ? d->max_operating_c : UNSUPPORTED;
    NEED(told);
    *celsius = d->fault == FAULT_GARBAGE ? 65535u : (unsigned int)told;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *asked) {
    REACH(device);
    if (asked->version != nvmlMarginTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    NEED(d->limit_c);
    warm(d);
    asked->marginTemperature = (int)floor(d->limit_c - d->cooler_c - d->die_c + 0.5);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    REACH(device);
    for (int i = 0; i < count; i++) {
        double told = values[i].fieldId == NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT ? d->shutdown_margin_c
                    : values[i].fieldId == NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT ? d->slowdown_margin_c : UNSUPPORTED;
        values[i].nvmlReturn = told <= UNSUPPORTED ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        values[i].valueType = i % 2 ? NVML_VALUE_TYPE_UNSIGNED_INT : NVML_VALUE_TYPE_SIGNED_INT;
        memset(&values[i].value, 0xA5, sizeof values[i].value);
        values[i].value.siVal = (int)told;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    REACH(device);
    if (!d->has_power) return NVML_ERROR_NOT_SUPPORTED;
    *milliwatts = d->fault == FAULT_GARBAGE ? ~0u : (unsigned int)(power_w(d) * 1000);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    REACH(device);
    if (!d->has_power) return NVML_ERROR_NOT_SUPPORTED;
    *milliwatts = (unsigned int)(d->power_limit_w * 1000);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    REACH(device);
    if (!d->has_power) return NVML_ERROR_NOT_SUPPORTED;
    *milliwatts = (unsigned int)(d->power_default_w * 1000);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least, unsigned int *most) {
    REACH(device);
    if (!d->has_power) return NVML_ERROR_NOT_SUPPORTED;
    *least = (unsigned int)(d->power_least_w * 1000);
    *most = (unsigned int)(d->power_default_w * 1200);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int milliwatts) {
    REACH(device);
    if (!d->may_cap) return NVML_ERROR_NO_PERMISSION;
    if (milliwatts < d->power_least_w * 1000 || milliwatts > d->power_default_w * 1200) return NVML_ERROR_INVALID_ARGUMENT;
    warm(d);
    d->power_limit_w = milliwatts / 1000.0;
    d->power_sets += 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    REACH(device);
    warm(d);
    double slows_at = d->slowdown_c > UNSUPPORTED ? d->slowdown_c : d->limit_c > UNSUPPORTED ? d->limit_c : 1e9;
    *reasons = d->cooler_c + d->die_c >= slows_at ? 0x40 : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {
    REACH(device);
    if (!d->has_processes) return NVML_ERROR_NOT_SUPPORTED;
    unsigned int found = 0;
    for (int i = -1; i < MOST_PROCESSES; i++) {
        double pid = i < 0 ? d->worker_pid : d->processes[i].pid, bytes = i < 0 ? workers_bytes(d) : process_bytes(d, i);
        if (pid <= 0 || bytes == 0) continue;
        if (found < *count && infos) {
            infos[found].pid = (unsigned int)pid;
            infos[found].usedGpuMemory = bytes <= UNSUPPORTED ? ~0ULL : (unsigned long long)bytes;
            infos[found].gpuInstanceId = infos[found].computeInstanceId = ~0u;
        }
        found++;
    }
    unsigned int room = *count;
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    REACH(device);
    *types = nvmlEventTypeXidCriticalError | 1 | 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    *set = (nvmlEventSet_t)control;
    return opened ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { return set ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT; }

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    REACH(device);
    return types && set ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    (void)timeout_ms;
    if (!opened || !set) return NVML_ERROR_UNINITIALIZED;
    for (int i = 0; i < control->devices; i++) {
        struct device *d = &control->device[i];
        if (d->xid <= 0 && d->ecc_errors <= 0) continue;
        data->device = (nvmlDevice_t)d;
        data->gpuInstanceId = data->computeInstanceId = ~0u;
        if (d->xid > 0) {
            data->eventType = nvmlEventTypeXidCriticalError;
            data->eventData = (unsigned long long)d->xid;
            d->xid = 0;
        } else {
            data->eventType = 2; /* nvmlEventTypeDoubleBitEccError */
            data->eventData = 0;
            d->ecc_errors -= 1;
        }
        return NVML_SUCCESS;
    }
    return NVML_ERROR_TIMEOUT;
}
