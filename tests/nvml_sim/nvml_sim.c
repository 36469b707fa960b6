/* Copyright: gpurig.llm maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A simulated libnvidia-ml.so.1: a rig described in a text file behaves towards the real Python binding as NVIDIA's
 * library and driver would. Written from NVML's public API contract. README.md says how to build and describe a rig.
 *
 * One directory holds a rig: rig.ini (what the machine is; only read), state.ini (what setters changed; no file means
 * freshly booted), journal.jsonl (one line per setter call). The directory is $NVML_SIM_DIR, else that of the library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_CARDS 32

typedef int code_t;
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25, UNKNOWN = 999
};

/* ---- text tables: '[section]', 'key = value', '#' comments -------------------------------------------------- */
struct entry { char *section, *key, *value; };
struct table { struct entry *at; int n, room; };

static void table_clear(struct table *t)
{
    for (int i = 0; i < t->n; i++) { free(t->at[i].section); free(t->at[i].key); free(t->at[i].value); }
    free(t->at);
    memset(t, 0, sizeof *t);
}

static void table_add(struct table *t, const char *section, const char *key, const char *value)
{
    if (t->n == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        t->at = realloc(t->at, (size_t)t->room * sizeof *t->at);
        if (!t->at) abort();
    }
    t->at[t->n++] = (struct entry){ strdup(section), strdup(key), strdup(value) };
}

static const char *table_get(const struct table *t, const char *section, const char *key)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->at[i].key, key) && !strcmp(t->at[i].section, section)) return t->at[i].value;
    return NULL;
}

static void table_set(struct table *t, const char *section, const char *key, const char *value)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->at[i].key, key) && !strcmp(t->at[i].section, section)) {
            free(t->at[i].value);
            t->at[i].value = strdup(value);
            return;
        }
    table_add(t, section, key, value);
}

static void table_drop(struct table *t, const char *section, const char *key)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->at[i].key, key) && !strcmp(t->at[i].section, section)) {
            free(t->at[i].section); free(t->at[i].key); free(t->at[i].value);
            t->at[i] = t->at[--t->n];
            return;
        }
}

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    char *end = s + strlen(s);
    while (end > s && strchr(" \t\r\n", end[-1])) *--end = 0;
    return s;
}

static int table_load(struct table *t, const char *path)
{
    char line[1024], section[96] = "";
    FILE *f = fopen(path, "re");
    table_clear(t);
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        char *s = trim(line), *eq;
        if (!*s || *s == '#') continue;
        if (*s == '[') {
            snprintf(section, sizeof section, "%.*s", (int)strcspn(s + 1, "]"), s + 1);
        } else if ((eq = strchr(s, '='))) {
            *eq = 0;
            table_add(t, section, trim(s), trim(eq + 1));
        }
    }
    fclose(f);
    return 1;
}

/* ---- the rig's directory ------------------------------------------------------------------------------------ */
static char rig_dir[PATH_MAX];

static void find_dir(void)
{
    const char *env = getenv("NVML_SIM_DIR");
    Dl_info self;
    char path[PATH_MAX];
    if (env && *env) {
        snprintf(rig_dir, sizeof rig_dir, "%s", env);
        return;
    }
    if (!dladdr((void *)find_dir, &self)) return;
    snprintf(rig_dir, sizeof rig_dir, "%s", self.dli_fname);
    char *slash = strrchr(rig_dir, '/');
    if (slash) *slash = 0; else strcpy(rig_dir, ".");
    snprintf(path, sizeof path, "%.4000s/rig.ini", rig_dir);
    if (access(path, R_OK) && realpath(self.dli_fname, path)) {
        /* the loader took a link: look beside the file itself */
        snprintf(rig_dir, sizeof rig_dir, "%s", path);
        if ((slash = strrchr(rig_dir, '/'))) *slash = 0;
    }
}

static const char *in_dir(const char *name, char *out)
{
    snprintf(out, PATH_MAX, "%.4000s/%s", rig_dir, name);
    return out;
}

/* ---- state shared by processes ------------------------------------------------------------------------------ */
static struct table rig, state;
static struct stat state_seen;

static void state_refresh(void)  /* the file is replaced as a whole, so an unchanged inode and time means no news */
{
    char path[PATH_MAX];
    struct stat now;
    if (stat(in_dir("state.ini", path), &now)) {
        table_clear(&state);
        memset(&state_seen, 0, sizeof state_seen);
    } else if (now.st_ino != state_seen.st_ino || now.st_size != state_seen.st_size ||
               memcmp(&now.st_mtim, &state_seen.st_mtim, sizeof now.st_mtim)) {
        table_load(&state, path);
        state_seen = now;
    }
}

static int open_shared(const char *name)  /* flock works on a read-only descriptor too: users may open root's file */
{
    char path[PATH_MAX];
    int fd = open(in_dir(name, path), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) (void)!fchmod(fd, 0666);
    return fd >= 0 ? fd : open(path, O_RDONLY | O_CLOEXEC);
}

static int state_lock(void)
{
    int fd = open_shared("state.lock");
    if (fd >= 0) flock(fd, LOCK_EX);
    memset(&state_seen, 0, sizeof state_seen);  /* under the lock read the file itself, never trust the time stamp */
    state_refresh();
    return fd;
}

static void state_unlock(int fd) { if (fd >= 0) close(fd); }

static int state_write(void)
{
    char path[PATH_MAX], temp[PATH_MAX];
    FILE *f = fopen(in_dir("state.tmp", temp), "we");
    if (!f) return 0;
    for (int i = 0; i < state.n; i++)
        fprintf(f, "[%s]\n%s = %s\n", state.at[i].section, state.at[i].key, state.at[i].value);
    fchmod(fileno(f), 0666);
    if (fclose(f)) return 0;
    return !rename(temp, in_dir("state.ini", path));
}

/* ---- cards -------------------------------------------------------------------------------------------------- */
struct card { int index; char section[16], uuid[96]; };
typedef struct card *card_t;

static struct card cards[MAX_CARDS];
static int n_cards, opened, client_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int is_card(const void *p)
{
    return (const char *)p >= (const char *)cards && (const char *)p < (const char *)(cards + n_cards) &&
           ((const char *)p - (const char *)cards) % (long)sizeof *cards == 0;
}

static const char *machine_get(const char *key) { return table_get(&rig, "machine", key); }
static int is_true(const char *v) { return v && (!strcmp(v, "1") || !strcmp(v, "true") || !strcmp(v, "on")); }

/* What a setter stored, else what the description says; NULL: the card has no such thing. */
static const char *card_get(card_t c, const char *key)
{
    state_refresh();
    const char *v = table_get(&state, c->uuid, key);
    if (!v) v = table_get(&rig, c->section, key);
    return v && strcmp(v, "unsupported") ? v : NULL;
}

/* ---- driver life: settings are kept by persistence mode or by any open client ------------------------------- */
static int keeps_settings(const char *uuid)
{
    if (is_true(machine_get("persistenced"))) return 1;
    for (int i = 0; i < n_cards; i++) {
        if (strcmp(cards[i].uuid, uuid)) continue;
        const char *p = table_get(&state, uuid, "persistence");
        if (!p) p = table_get(&rig, cards[i].section, "persistence");
        return is_true(p) || table_get(&rig, cards[i].section, "process") != NULL;
    }
    return 1;  /* not in this description: leave it */
}

static void drop_settings(void)
{
    static const char *const lost[] = { "power_limit", "clocks_locked", "memory_clocks_locked", "compute_mode" };
    int before = state.n;
    for (int c = 0; c < n_cards; c++)
        if (!keeps_settings(cards[c].uuid))
            for (size_t k = 0; k < sizeof lost / sizeof *lost; k++) table_drop(&state, cards[c].uuid, lost[k]);
    if (state.n != before) state_write();
}

static void client_enter(void)  /* a killed client's lock is dropped by the kernel; the next one to come notices */
{
    int lock = state_lock();
    client_fd = open_shared("clients.lock");
    if (client_fd >= 0) {
        if (!flock(client_fd, LOCK_EX | LOCK_NB)) drop_settings();
        flock(client_fd, LOCK_SH);
    }
    state_unlock(lock);
}

static void client_leave(void)
{
    int lock = state_lock();
    if (client_fd >= 0) {
        if (!flock(client_fd, LOCK_EX | LOCK_NB)) drop_settings();
        close(client_fd);
        client_fd = -1;
    }
    state_unlock(lock);
}

/* ---- injected faults: 'fault.<function> = CODE', '... CODE after N', '... CODE for N' ----------------------- */
static code_t fault_value(const char *section, const char *counter_section, const char *key)
{
    const char *v = table_get(&rig, section, key);
    int code = 0;
    long n = 0;
    char word[8] = "", counter[128], text[32];
    if (!v || sscanf(v, "%d %7s %ld", &code, word, &n) < 1) return OK;
    if (!*word) return code;
    snprintf(counter, sizeof counter, "calls.%s", key);
    int lock = state_lock();
    const char *seen = table_get(&state, counter_section, counter);
    long calls = (seen ? atol(seen) : 0) + 1;
    snprintf(text, sizeof text, "%ld", calls);
    table_set(&state, counter_section, counter, text);
    state_write();
    state_unlock(lock);
    return !strcmp(word, "after") ? (calls > n ? code : OK) : (calls <= n ? code : OK);
}

static code_t fault(const char *function, card_t c)
{
    char key[128];
    snprintf(key, sizeof key, "fault.%s", function);
    code_t r = fault_value("machine", "machine", key);
    if (r || !c) return r;
    if (is_true(table_get(&rig, c->section, "lost"))) return GPU_IS_LOST;
    if ((r = fault_value(c->section, c->uuid, "fault.*"))) return r;
    return fault_value(c->section, c->uuid, key);
}

static code_t gate(const char *function, card_t c)
{
    if (!opened) return UNINITIALIZED;
    if (!is_card(c)) return INVALID_ARGUMENT;
    return fault(function, c);
}

static code_t gate_set(const char *function, card_t c)
{
    code_t r = gate(function, c);
    const char *who = machine_get("setters");
    if (r) return r;
    if (who && !strcmp(who, "anyone")) return OK;
    if (who && !strcmp(who, "nobody")) return NO_PERMISSION;
    return geteuid() ? NO_PERMISSION : OK;
}

/* ---- journal ------------------------------------------------------------------------------------------------ */
static code_t journal(code_t r, const char *function, const void *c, const char *args, ...)
{
    char path[PATH_MAX], line[512];
    va_list list;
    int n = snprintf(line, sizeof line, "{\"pid\": %d, \"euid\": %d, \"call\": \"%s\", \"card\": ", (int)getpid(),
                     (int)geteuid(), function);
    n += is_card(c) ? snprintf(line + n, sizeof line - (size_t)n, "\"%s\", \"args\": [", ((card_t)c)->uuid)
                    : snprintf(line + n, sizeof line - (size_t)n, "null, \"args\": [");
    va_start(list, args);
    n += vsnprintf(line + n, sizeof line - (size_t)n, args, list);
    va_end(list);
    n += snprintf(line + n, sizeof line - (size_t)n, "], \"code\": %d}\n", r);
    int fd = open(in_dir("journal.jsonl", path), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) {
        (void)!fchmod(fd, 0666);
        (void)!write(fd, line, (size_t)n);
        close(fd);
    }
    return r;
}

/* Every other symbol of the binding comes here (stubs.c is generated): NOT_SUPPORTED, and setters are on record. */
code_t nvml_sim_stub(const char *function, const void *first);
code_t nvml_sim_stub(const char *function, const void *first)
{
    code_t r = !opened ? UNINITIALIZED : is_card(first) ? fault(function, (card_t)first) : OK;
    if (!r) r = NOT_SUPPORTED;
    if (strstr(function, "Set") || strstr(function, "Reset") || strstr(function, "Clear"))
        journal(r, function, first, "");
    return r;
}

/* ---- typed access ------------------------------------------------------------------------------------------- */
static code_t get_number(const char *function, card_t c, const char *key, u64 *out)
{
    code_t r = gate(function, c);
    if (r) return r;
    if (!out) return INVALID_ARGUMENT;
    const char *v = card_get(c, key);
    if (!v) return NOT_SUPPORTED;
    *out = strtoull(v, NULL, 0);
    return OK;
}

static code_t get_u32(const char *function, card_t c, const char *key, u32 *out)
{
    u64 v = 0;
    code_t r = get_number(function, c, key, &v);
    if (!r && !out) r = INVALID_ARGUMENT;
    if (!r) *out = (u32)v;
    return r;
}

static code_t copy_text(const char *v, char *out, u32 size)
{
    if (!v) return NOT_SUPPORTED;
    if (!out) return INVALID_ARGUMENT;
    if (strlen(v) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, v);
    return OK;
}

static code_t get_text(const char *function, card_t c, const char *key, char *out, u32 size)
{
    code_t r = gate(function, c);
    return r ? r : copy_text(card_get(c, key), out, size);
}

static code_t store(const char *function, card_t c, const char *key, const char *value)
{
    char ignores[128];
    snprintf(ignores, sizeof ignores, "ignores.%s", function);
    if (is_true(table_get(&rig, c->section, ignores))) return OK;  /* says yes and does nothing */
    int lock = state_lock();
    if (value) table_set(&state, c->uuid, key, value); else table_drop(&state, c->uuid, key);
    int written = state_write();
    state_unlock(lock);
    return written ? OK : UNKNOWN;
}

/* ---- library and system ------------------------------------------------------------------------------------- */
static int load_rig(void)
{
    char path[PATH_MAX];
    find_dir();
    return table_load(&rig, in_dir("rig.ini", path));
}

EXPORT code_t nvmlInitWithFlags(u32 flags)
{
    code_t r = OK;
    (void)flags;
    pthread_mutex_lock(&mutex);
    if (!opened) {
        if (!load_rig()) r = DRIVER_NOT_LOADED;
        if (!r) r = fault("nvmlInitWithFlags", NULL);
        for (n_cards = 0; !r && n_cards < MAX_CARDS; n_cards++) {
            struct card *c = &cards[n_cards];
            c->index = n_cards;
            snprintf(c->section, sizeof c->section, "gpu%d", n_cards);
            const char *uuid = table_get(&rig, c->section, "uuid");
            if (!uuid) break;
            snprintf(c->uuid, sizeof c->uuid, "%s", uuid);
        }
        if (!r) client_enter();
    }
    if (!r) opened++;
    pthread_mutex_unlock(&mutex);
    return r;
}
EXPORT code_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT code_t nvmlInit(void) { return nvmlInitWithFlags(0); }
EXPORT code_t nvmlShutdown(void)
{
    code_t r = UNINITIALIZED;
    pthread_mutex_lock(&mutex);
    if (opened) {
        r = OK;
        if (!--opened) client_leave();
    }
    pthread_mutex_unlock(&mutex);
    return r;
}
__attribute__((destructor)) static void leave_at_exit(void)  /* a process may end without nvmlShutdown */
{
    if (opened) client_leave();
    table_clear(&rig);
    table_clear(&state);
}

EXPORT const char *nvmlErrorString(code_t r)
{
    static const char *const text[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "GPU access blocked by the operating system",
        "Driver/library version mismatch", "In use by another client", "Insufficient memory", "No data",
        "Operation is not available due to vGPU ECC", "Insufficient resources", "Frequency not supported",
        "Argument version mismatch", "Deprecated", "System is not ready for the request", "No GPUs were found",
        "Resource not in correct state to perform requested operation", "Reset type not supported",
    };
    return r >= 0 && r < (int)(sizeof text / sizeof *text) ? text[r] : "Unknown Error";
}

EXPORT code_t nvmlSystemGetNVMLVersion(char *out, u32 size)  /* answers before nvmlInit, as the real one does */
{
    if (!opened && !load_rig()) return UNINITIALIZED;
    return copy_text(machine_get("nvml"), out, size);
}
EXPORT code_t nvmlSystemGetDriverVersion(char *out, u32 size)
{
    return opened ? copy_text(machine_get("driver"), out, size) : UNINITIALIZED;
}
static code_t cuda_version(const char *function, int *out)
{
    int major = 0, minor = 0;
    code_t r = opened ? fault(function, NULL) : UNINITIALIZED;
    const char *v = machine_get("cuda");
    if (r) return r;
    if (!out) return INVALID_ARGUMENT;
    if (!v || sscanf(v, "%d.%d", &major, &minor) != 2) return NOT_SUPPORTED;
    *out = major * 1000 + minor * 10;
    return OK;
}
EXPORT code_t nvmlSystemGetCudaDriverVersion(int *out) { return cuda_version(__func__, out); }
EXPORT code_t nvmlSystemGetCudaDriverVersion_v2(int *out) { return cuda_version(__func__, out); }
EXPORT code_t nvmlSystemGetProcessName(u32 pid, char *out, u32 size)
{
    unsigned long long id;
    char used[32], kind, name[128];
    if (!opened) return UNINITIALIZED;
    for (int i = 0; i < rig.n; i++)
        if (!strcmp(rig.at[i].key, "process") &&
            sscanf(rig.at[i].value, "%llu %31s %c %127[^\n]", &id, used, &kind, name) == 4 && id == pid)
            return copy_text(name, out, size);
    return NOT_FOUND;
}

/* ---- finding a card ----------------------------------------------------------------------------------------- */
EXPORT code_t nvmlDeviceGetCount_v2(u32 *out)
{
    code_t r = opened ? fault(__func__, NULL) : UNINITIALIZED;
    if (!r && !out) r = INVALID_ARGUMENT;
    if (!r) *out = (u32)n_cards;
    return r;
}
static code_t give_handle(const char *function, card_t c, card_t *out)
{
    code_t r = fault(function, c);
    if (!r) r = fault_value(c->section, c->uuid, "fault.handle");
    if (!r) *out = c;
    return r;
}
EXPORT code_t nvmlDeviceGetHandleByIndex_v2(u32 index, card_t *out)
{
    if (!opened) return UNINITIALIZED;
    if (!out || index >= (u32)n_cards) return INVALID_ARGUMENT;
    return give_handle(__func__, &cards[index], out);
}
EXPORT code_t nvmlDeviceGetHandleByUUID(const char *uuid, card_t *out)
{
    if (!opened) return UNINITIALIZED;
    if (!uuid || !out) return INVALID_ARGUMENT;
    for (int i = 0; i < n_cards; i++)
        if (!strcmp(cards[i].uuid, uuid)) return give_handle(__func__, &cards[i], out);
    return NOT_FOUND;
}
static int parse_pci(const char *s, u32 at[3])
{
    if (s && sscanf(s, "%x:%x:%x", &at[0], &at[1], &at[2]) == 3) return 1;
    at[0] = 0;
    return s && sscanf(s, "%x:%x", &at[1], &at[2]) == 2;
}
EXPORT code_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, card_t *out)
{
    u32 wanted[3], at[3];
    if (!opened) return UNINITIALIZED;
    if (!out || !parse_pci(bus_id, wanted)) return INVALID_ARGUMENT;
    for (int i = 0; i < n_cards; i++)
        if (parse_pci(table_get(&rig, cards[i].section, "pci"), at) && !memcmp(at, wanted, sizeof at))
            return give_handle(__func__, &cards[i], out);
    return NOT_FOUND;
}
typedef struct { char legacy[16]; u32 domain, bus, device, ids, subsystem_ids; char bus_id[32]; } pci_info_t;
EXPORT code_t nvmlDeviceGetPciInfo_v3(card_t c, pci_info_t *out)
{
    u32 at[3];
    const char *v;
    code_t r = gate(__func__, c);
    if (r) return r;
    if (!out) return INVALID_ARGUMENT;
    if (!parse_pci(card_get(c, "pci"), at)) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->domain = at[0]; out->bus = at[1]; out->device = at[2];
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", at[0] & 0xffff, at[1] & 0xff, at[2] & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", at[0], at[1], at[2]);
    if ((v = card_get(c, "pci_ids"))) out->ids = (u32)strtoul(v, NULL, 0);
    if ((v = card_get(c, "pci_subsystem_ids"))) out->subsystem_ids = (u32)strtoul(v, NULL, 0);
    return OK;
}
EXPORT code_t nvmlDeviceGetIndex(card_t c, u32 *out)
{
    code_t r = gate(__func__, c);
    if (!r) *out = (u32)c->index;
    return r;
}
EXPORT code_t nvmlDeviceGetMinorNumber(card_t c, u32 *out)
{
    code_t r = gate(__func__, c);
    const char *v = r ? NULL : card_get(c, "minor");
    if (!r) *out = v ? (u32)atoi(v) : (u32)c->index;
    return r;
}

/* ---- readings ----------------------------------------------------------------------------------------------- */
#define TEXT(function, key) \
    EXPORT code_t function(card_t c, char *out, u32 size) { return get_text(#function, c, key, out, size); }
#define NUMBER(function, key) \
    EXPORT code_t function(card_t c, u32 *out) { return get_u32(#function, c, key, out); }
#define LONG(function, key) \
    EXPORT code_t function(card_t c, u64 *out) { return get_number(#function, c, key, out); }
#define PAIR(function, first, second) \
    EXPORT code_t function(card_t c, u32 *a, u32 *b) \
    { u64 x = 0, y = 0; code_t r = get_number(#function, c, first, &x); if (!r && card_get(c, second)) \
      y = strtoull(card_get(c, second), NULL, 0); else y = x; if (!r) { *a = (u32)x; *b = (u32)y; } return r; }

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part_number")
NUMBER(nvmlDeviceGetBrand, "brand")
NUMBER(nvmlDeviceGetArchitecture, "architecture")
NUMBER(nvmlDeviceGetNumGpuCores, "cores")
NUMBER(nvmlDeviceGetMemoryBusWidth, "memory_bus_width")
NUMBER(nvmlDeviceGetPowerUsage, "power_usage")
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, "power_default")
NUMBER(nvmlDeviceGetPowerSource, "power_source")
NUMBER(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER(nvmlDeviceGetDisplayActive, "display_active")
NUMBER(nvmlDeviceGetDisplayMode, "display_mode")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen_current")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max")
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, "pcie_gen_card_max")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width_current")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie_replays")
NUMBER(nvmlDeviceGetFanSpeed, "fan")
NUMBER(nvmlDeviceGetNumFans, "fans")
NUMBER(nvmlDeviceGetPerformanceState, "pstate")
NUMBER(nvmlDeviceGetPowerState, "pstate")
LONG(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle")
LONG(nvmlDeviceGetCurrentClocksEventReasons, "throttle")
PAIR(nvmlDeviceGetEccMode, "ecc", "ecc_pending")
PAIR(nvmlDeviceGetMigMode, "mig", "mig_pending")

EXPORT code_t nvmlDeviceGetFanSpeed_v2(card_t c, u32 fan, u32 *out)
{
    u64 v = 0;
    code_t r = get_number(__func__, c, "fan", &v);
    if (!r) { if (fan > 7) return INVALID_ARGUMENT; *out = (u32)v; }
    return r;
}
EXPORT code_t nvmlDeviceGetCudaComputeCapability(card_t c, int *major, int *minor)
{
    code_t r = gate(__func__, c);
    const char *v = r ? NULL : card_get(c, "compute_capability");
    if (r) return r;
    return v && sscanf(v, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}
static code_t clock_of(const char *function, card_t c, u32 type, const char *const keys[4], u32 *out)
{
    u64 v = 0;
    code_t r = type > 3 ? INVALID_ARGUMENT : get_number(function, c, keys[type], &v);
    if (!r) *out = (u32)v;
    return r;
}
EXPORT code_t nvmlDeviceGetClockInfo(card_t c, u32 type, u32 *out)
{
    static const char *const keys[4] = { "clock_graphics", "clock_graphics", "clock_memory", "clock_video" };
    return clock_of(__func__, c, type, keys, out);
}
EXPORT code_t nvmlDeviceGetMaxClockInfo(card_t c, u32 type, u32 *out)
{
    static const char *const keys[4] = { "clock_graphics_max", "clock_graphics_max", "clock_memory_max",
                                         "clock_video_max" };
    return clock_of(__func__, c, type, keys, out);
}
EXPORT code_t nvmlDeviceGetTemperature(card_t c, u32 sensor, u32 *out)
{
    u64 v = 0;
    code_t r = sensor ? INVALID_ARGUMENT : get_number(__func__, c, "temperature", &v);
    if (!r) *out = (u32)v;
    return r;
}
typedef struct { u32 version, sensor; int temperature; } temperature_v1_t;
EXPORT code_t nvmlDeviceGetTemperatureV(card_t c, temperature_v1_t *t)
{
    u64 v = 0;
    if (!t) return INVALID_ARGUMENT;
    if (t->version != (sizeof *t | 1u << 24)) return VERSION_MISMATCH;
    code_t r = get_number(__func__, c, "temperature", &v);
    if (!r) t->temperature = (int)v;
    return r;
}
EXPORT code_t nvmlDeviceGetTemperatureThreshold(card_t c, u32 which, u32 *out)
{
    static const char *const keys[] = { "temperature_shutdown", "temperature_slowdown", "temperature_memory_max",
                                        "temperature_gpu_max" };
    u64 v = 0;
    code_t r = gate(__func__, c);
    if (r) return r;
    if (which > 3) return NOT_SUPPORTED;
    const char *text = card_get(c, keys[which]);
    if (!text) return NOT_SUPPORTED;
    v = strtoull(text, NULL, 0);
    *out = (u32)v;
    return OK;
}
typedef struct { u32 gpu, memory; } utilization_t;
EXPORT code_t nvmlDeviceGetUtilizationRates(card_t c, utilization_t *out)
{
    u64 gpu = 0;
    code_t r = get_number(__func__, c, "utilization_gpu", &gpu);
    if (r) return r;
    const char *memory = card_get(c, "utilization_memory");
    out->gpu = (u32)gpu;
    out->memory = memory ? (u32)atoi(memory) : 0;
    return OK;
}

static u64 number_or_zero(card_t c, const char *key)
{
    const char *v = card_get(c, key);
    return v ? strtoull(v, NULL, 0) : 0;
}
typedef struct { u64 total, free, used; } memory_t;
EXPORT code_t nvmlDeviceGetMemoryInfo(card_t c, memory_t *out)  /* the first version counts the reserved part as used */
{
    u64 total = 0;
    code_t r = get_number(__func__, c, "memory_total", &total);
    if (r) return r;
    out->total = total;
    out->used = number_or_zero(c, "memory_used") + number_or_zero(c, "memory_reserved");
    out->free = total - out->used;
    return OK;
}
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2_t;
EXPORT code_t nvmlDeviceGetMemoryInfo_v2(card_t c, memory_v2_t *out)
{
    u64 total = 0;
    if (!out) return INVALID_ARGUMENT;
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    code_t r = get_number(__func__, c, "memory_total", &total);
    if (r) return r;
    out->total = total;
    out->reserved = number_or_zero(c, "memory_reserved");
    out->used = number_or_zero(c, "memory_used");
    out->free = total - out->reserved - out->used;
    return OK;
}
EXPORT code_t nvmlDeviceGetBAR1MemoryInfo(card_t c, memory_t *out)
{
    u64 total = 0;
    code_t r = get_number(__func__, c, "bar1_total", &total);
    if (r) return r;
    out->total = total;
    out->used = number_or_zero(c, "bar1_used");
    out->free = total - out->used;
    return OK;
}

/* 'process = PID BYTES|- c|g NAME', repeatable; '-': the driver does not tell. Asking with room 0 gives the number. */
typedef struct { u32 pid; u64 used; u32 instance, compute_instance; } process_t;
static code_t processes(const char *function, card_t c, char kind, u32 *count, process_t *out)
{
    code_t r = gate(function, c);
    if (r || !count) return r ? r : INVALID_ARGUMENT;
    u32 room = *count, n = 0;
    for (int i = 0; i < rig.n; i++) {
        unsigned long long pid;
        char used[32], k = 'c';
        if (strcmp(rig.at[i].section, c->section) || strcmp(rig.at[i].key, "process")) continue;
        if (sscanf(rig.at[i].value, "%llu %31s %c", &pid, used, &k) < 2 || k != kind) continue;
        if (n < room && out)
            out[n] = (process_t){ (u32)pid, strcmp(used, "-") ? strtoull(used, NULL, 0) : ~0ull, ~0u, ~0u };
        n++;
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : OK;
}
EXPORT code_t nvmlDeviceGetComputeRunningProcesses_v3(card_t c, u32 *n, process_t *out)
{
    return processes(__func__, c, 'c', n, out);
}
EXPORT code_t nvmlDeviceGetGraphicsRunningProcesses_v3(card_t c, u32 *n, process_t *out)
{
    return processes(__func__, c, 'g', n, out);
}

/* ---- power -------------------------------------------------------------------------------------------------- */
static code_t power_limit(const char *function, card_t c, u32 *out)
{
    u64 v = 0;
    code_t r = gate(function, c);
    if (r) return r;
    const char *set = card_get(c, "power_limit");
    if (!set) set = card_get(c, "power_default");
    if (!set) return NOT_SUPPORTED;
    v = strtoull(set, NULL, 0);
    *out = (u32)v;
    return OK;
}
EXPORT code_t nvmlDeviceGetPowerManagementLimit(card_t c, u32 *out) { return power_limit(__func__, c, out); }
EXPORT code_t nvmlDeviceGetEnforcedPowerLimit(card_t c, u32 *out)  /* other limits of the board may be lower */
{
    code_t r = power_limit(__func__, c, out);
    const char *ceiling = r ? NULL : card_get(c, "power_enforced_ceiling");
    if (ceiling && strtoul(ceiling, NULL, 0) < *out) *out = (u32)strtoul(ceiling, NULL, 0);
    return r;
}
static code_t power_range(card_t c, u32 *low, u32 *high)
{
    const char *a = card_get(c, "power_min"), *b = card_get(c, "power_max");
    if (!a || !b) return NOT_SUPPORTED;
    *low = (u32)strtoul(a, NULL, 0);
    *high = (u32)strtoul(b, NULL, 0);
    return OK;
}
EXPORT code_t nvmlDeviceGetPowerManagementLimitConstraints(card_t c, u32 *low, u32 *high)
{
    code_t r = gate(__func__, c);
    return r ? r : power_range(c, low, high);
}
static code_t set_power(const char *function, card_t c, u32 mw)
{
    u32 low, high;
    char text[32];
    code_t r = gate_set(function, c);
    if (!r) r = power_range(c, &low, &high);
    if (!r && (mw < low || mw > high)) r = INVALID_ARGUMENT;
    if (!r) {
        const char *step = card_get(c, "power_step");  /* some boards keep coarser steps */
        u32 unit = step ? (u32)strtoul(step, NULL, 0) : 1;
        snprintf(text, sizeof text, "%u", mw / unit * unit);
        r = store(function, c, "power_limit", text);
    }
    return journal(r, function, c, "%u", mw);
}
EXPORT code_t nvmlDeviceSetPowerManagementLimit(card_t c, u32 mw) { return set_power(__func__, c, mw); }
typedef struct { u32 version; unsigned char scope; u32 mw; } power_v2_t;
EXPORT code_t nvmlDeviceSetPowerManagementLimit_v2(card_t c, power_v2_t *p)
{
    if (!p || p->version != (sizeof *p | 2u << 24)) return INVALID_ARGUMENT;
    return set_power(__func__, c, p->mw);
}

/* ---- other setters ------------------------------------------------------------------------------------------ */
static code_t set_choice(const char *function, card_t c, const char *key, u32 value, u32 top)
{
    char text[32];
    code_t r = gate_set(function, c);
    if (!r && !card_get(c, key)) r = NOT_SUPPORTED;
    if (!r && value > top) r = INVALID_ARGUMENT;
    snprintf(text, sizeof text, "%u", value);
    if (!r) r = store(function, c, key, text);
    return journal(r, function, c, "%u", value);
}
EXPORT code_t nvmlDeviceSetPersistenceMode(card_t c, u32 on) { return set_choice(__func__, c, "persistence", on, 1); }
EXPORT code_t nvmlDeviceSetComputeMode(card_t c, u32 mode) { return set_choice(__func__, c, "compute_mode", mode, 3); }

static code_t lock_clocks(const char *function, card_t c, const char *key, const char *top_key, u32 low, u32 high)
{
    char text[64];
    code_t r = gate_set(function, c);
    const char *top = r ? NULL : card_get(c, top_key);
    if (!r && !top) r = NOT_SUPPORTED;
    if (!r && (low > high || high > (u32)strtoul(top, NULL, 0))) r = INVALID_ARGUMENT;
    snprintf(text, sizeof text, "%u,%u", low, high);
    if (!r) r = store(function, c, key, text);
    return journal(r, function, c, "%u, %u", low, high);
}
static code_t unlock_clocks(const char *function, card_t c, const char *key, const char *top_key)
{
    code_t r = gate_set(function, c);
    if (!r && !card_get(c, top_key)) r = NOT_SUPPORTED;
    if (!r) r = store(function, c, key, NULL);
    return journal(r, function, c, "");
}
EXPORT code_t nvmlDeviceSetGpuLockedClocks(card_t c, u32 low, u32 high)
{
    return lock_clocks(__func__, c, "clocks_locked", "clock_graphics_max", low, high);
}
EXPORT code_t nvmlDeviceResetGpuLockedClocks(card_t c)
{
    return unlock_clocks(__func__, c, "clocks_locked", "clock_graphics_max");
}
EXPORT code_t nvmlDeviceSetMemoryLockedClocks(card_t c, u32 low, u32 high)
{
    return lock_clocks(__func__, c, "memory_clocks_locked", "clock_memory_max", low, high);
}
EXPORT code_t nvmlDeviceResetMemoryLockedClocks(card_t c)
{
    return unlock_clocks(__func__, c, "memory_clocks_locked", "clock_memory_max");
}
