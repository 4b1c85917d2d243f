/* What drives the fake devices: one mapped file, whose layout `__init__.py` declares as well. */
#define MAGIC 0x6d656d7375703131ULL
#define MOST_DEVICES 4
#define MOST_PROCESSES 8
#define UNSUPPORTED (-1000000.0)

enum fault { FAULT_NONE, FAULT_LOST, FAULT_HANG, FAULT_CRASH, FAULT_GARBAGE, FAULT_FROZEN, FAULT_ERROR };

struct process { double pid, bytes; };

struct device {
    char name[64], uuid[64];
    double fault;
    /* What it answers; UNSUPPORTED where it does not. */
    double slowdown_c, shutdown_c, max_operating_c, limit_c, slowdown_margin_c, shutdown_margin_c;
    double has_temperature, has_power, has_processes, has_old_temperature_only;
    double compute_capability; /* 8.6, say; 0 where it does not tell */
    double total_bytes, others_bytes, worker_bytes, worker_pid;
    double counts_processes; /* `processes` are real ones, beside `others_bytes`; what a dead one had is free again */
    double frees_of_dead; /* the worker is a real process, and what a dead one had is free again, as with a real driver */
    struct process processes[MOST_PROCESSES];
    /* How it warms up: `full_w` at duty 1, `degrees_per_w` at rest of the cooler, of which `die_fraction` follows at once. */
    double ambient_c, ambient_c_per_h, duty, idle_w, full_w, degrees_per_w, cooler_s, die_s, die_fraction, noise_c;
    double power_limit_w, power_least_w, power_default_w, may_cap;
    double xid; /* taken once, then 0 */
    double ecc_errors; /* that cannot be corrected; one event each */
    /* The library's own. */
    double cooler_c, die_c, at_s, slowdowns, frozen_c, power_sets;
};

struct control {
    uint64_t magic;
    double clock_s; /* the devices' time; below 0: the machine's own, times `speed` */
    double speed, devices, init_result, init_hangs, opens, calls, random;
    struct device device[MOST_DEVICES];
};
