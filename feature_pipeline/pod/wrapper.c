/* Runs a hook's command and says how it ended, in an image that holds nothing of ours.
 *
 *   wrapper --log FILE --head BYTES --tail BYTES --status FILE --timeout SECONDS --grace SECONDS
 *           -- COMMAND [ARGUMENT...]
 *
 * Linked statically, it needs a kernel and no more: no shell, no libc, no loader in the image.
 * Standard output and error of the command go through one pipe, so that their order is kept, to
 * this program's output and byte by byte to the log, of which no more than its first and last bytes
 * are kept. The deadline is kept here: one on the pod would end the pod before anything of a late hook
 * is published. A hook of which the kernel killed a process for want of memory is ended at once: what
 * is left of it may wait for that process for ever. The exit status is 0 whatever the hook's
 * was, for the pod to go on to publish; 137 when the kernel killed a process of the hook for want of
 * memory, after which a kubelet publishes nothing; 143 when the pod itself is being ended; 2 when
 * this program could not do its work.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t is_terminated = 0;

static void on_term(int number) {
    (void)number;
    is_terminated = 1;
}

static void die(const char *what) {
    fprintf(stderr, "feature-pipeline wrapper: %s: %s\n", what, strerror(errno));
    exit(2);
}

static double monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double wall(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void write_all(int descriptor, const char *data, ssize_t left) {
    while (left > 0) {
        ssize_t written = write(descriptor, data, left);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return; /* a full disk or a closed output must not stop the hook */
        data += written;
        left -= written;
    }
}

/* A file of `head` bytes, and behind them a ring of `tail` bytes: as much of the log as is kept. */
struct log {
    int file;
    off_t head, tail, size;
};

static void write_at(int file, const char *data, ssize_t left, off_t at) {
    while (left > 0) {
        ssize_t written = pwrite(file, data, left, at);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return; /* as in write_all */
        data += written;
        at += written;
        left -= written;
    }
}

static void log_write(struct log *log, const char *data, ssize_t left) {
    while (left > 0) {
        off_t at = log->size, end = log->head;
        if (at >= log->head) {
            at = log->head + (log->size - log->head) % log->tail;
            end = log->head + log->tail;
        }
        ssize_t now = left < end - at ? left : end - at;
        write_at(log->file, data, now, at);
        log->size += now;
        data += now;
        left -= now;
    }
}

/* The ring becomes the end of the log, from the beginning of a line, after a word on what is missing. */
static void log_end(struct log *log) {
    off_t missing = log->size - log->head - log->tail;
    if (missing <= 0) return;
    off_t oldest = (log->size - log->head) % log->tail, kept = 0;
    char *end = malloc(log->tail), note[128];
    if (end) {
        ssize_t first = pread(log->file, end, log->tail - oldest, log->head + oldest);
        ssize_t second = first < 0 ? -1 : pread(log->file, end + first, oldest, log->head);
        if (second >= 0) kept = first + second;
    }
    char *line = kept ? memchr(end, '\n', kept) : NULL;
    off_t skipped = line ? line + 1 - end : 0;
    int said = snprintf(note, sizeof note,
                        "\n[feature_pipeline] %lld bytes of the log are left out here\n",
                        (long long)(missing + log->tail - kept + skipped));
    if (ftruncate(log->file, log->head)) return;
    write_at(log->file, note, said, log->head);
    if (kept) write_at(log->file, end + skipped, kept - skipped, log->head + said);
    free(end);
}

/* 1 after a chunk, 0 at the end, -1 if there is nothing now. */
static int copy_chunk(int from, struct log *log) {
    static char chunk[1 << 16];
    ssize_t got = read(from, chunk, sizeof chunk);
    if (got < 0) return -1;
    if (got == 0) return 0;
    write_all(1, chunk, got);
    log_write(log, chunk, got);
    return 1;
}

/* Processes the kernel killed in this container for want of memory; -1 where that cannot be seen. */
static long oom_kills(void) {
    static const char *const files[] = {"/sys/fs/cgroup/memory.events",
                                        "/sys/fs/cgroup/memory/memory.oom_control"};
    for (size_t n = 0; n < sizeof files / sizeof *files; n++) {
        FILE *file = fopen(files[n], "r");
        char name[64];
        long value, found = -1;
        if (!file) continue;
        while (fscanf(file, "%63s %ld", name, &value) == 2)
            if (!strcmp(name, "oom_kill")) found = value;
        fclose(file);
        if (found >= 0) return found;
    }
    return -1;
}

static void write_text(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; text++) {
        unsigned char c = *text;
        if (c == '"' || c == '\\') fprintf(file, "\\%c", c);
        else if (c < 0x20) fprintf(file, "\\u%04x", c);
        else fputc(c, file);
    }
    fputc('"', file);
}

int main(int argc, char **argv) {
    const char *log_path = NULL, *status_path = NULL;
    double timeout = 0, grace = 10;
    struct log log = {.head = 0, .tail = 0};
    int at = 1;
    for (; at + 1 < argc && strcmp(argv[at], "--"); at += 2) {
        if (!strcmp(argv[at], "--log")) log_path = argv[at + 1];
        else if (!strcmp(argv[at], "--head")) log.head = atoll(argv[at + 1]);
        else if (!strcmp(argv[at], "--tail")) log.tail = atoll(argv[at + 1]);
        else if (!strcmp(argv[at], "--status")) status_path = argv[at + 1];
        else if (!strcmp(argv[at], "--timeout")) timeout = atof(argv[at + 1]);
        else if (!strcmp(argv[at], "--grace")) grace = atof(argv[at + 1]);
        else break;
    }
    if (!log_path || !status_path || log.head <= 0 || log.tail <= 0 || timeout <= 0 ||
        at + 1 >= argc || strcmp(argv[at], "--")) {
        fprintf(stderr, "usage: wrapper --log F --head N --tail N --status F --timeout S --grace S"
                        " -- COMMAND...\n");
        return 2;
    }
    char **command = argv + at + 1;

    log.file = open(log_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log.file < 0) die(log_path);
    int output[2], failure[2];
    if (pipe2(output, O_CLOEXEC) || pipe2(failure, O_CLOEXEC)) die("pipe");
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    long kills_before = oom_kills();
    double started = wall(), begun = monotonic();

    pid_t hook = fork();
    if (hook < 0) die("fork");
    if (hook == 0) {
        int nothing = open("/dev/null", O_RDONLY);
        setsid();
        if (nothing >= 0) dup2(nothing, 0);
        dup2(output[1], 1);
        dup2(output[1], 2);
        signal(SIGPIPE, SIG_DFL);
        execvp(command[0], command);
        int number = errno;
        write_all(failure[1], (char *)&number, sizeof number);
        _exit(127);
    }
    close(output[1]);
    close(failure[1]);
    int start_errno = 0;
    while (read(failure[0], &start_errno, sizeof start_errno) < 0 && errno == EINTR) {}
    fcntl(output[0], F_SETFL, O_NONBLOCK);

    int status = 0, is_over = 0, is_open = 1, is_late = 0, is_stopping = 0;
    double kill_at = 0, look_at = 0;
    while (!is_over) {
        struct pollfd ready = {.fd = is_open ? output[0] : -1, .events = POLLIN};
        if (poll(&ready, 1, 50) > 0 && copy_chunk(output[0], &log) == 0) is_open = 0;
        double now = monotonic();
        if (!is_stopping && (is_terminated || now - begun >= timeout)) {
            is_late = !is_terminated;
            is_stopping = 1;
            kill_at = now + grace;
            kill(-hook, SIGTERM);
        }
        if (!is_stopping && now >= look_at) {
            look_at = now + 0.25;
            if (oom_kills() > kills_before) is_stopping = 1, kill_at = now;
        }
        if (is_stopping && now >= kill_at) kill(-hook, SIGKILL);
        int ended;
        pid_t pid;
        while ((pid = waitpid(-1, &ended, WNOHANG)) > 0)
            if (pid == hook) status = ended, is_over = 1;
    }
    /* nothing of the hook runs on: as process 1, every other process is one of its */
    kill(-hook, SIGKILL);
    if (getpid() == 1) kill(-1, SIGKILL);
    double drained = monotonic() + 2;
    while (is_open && monotonic() < drained) {
        struct pollfd ready = {.fd = output[0], .events = POLLIN};
        if (poll(&ready, 1, 50) > 0 && copy_chunk(output[0], &log) == 0) is_open = 0;
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
    log_end(&log);
    fsync(log.file);

    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    long kills = oom_kills();
    char part[4096];
    snprintf(part, sizeof part, "%s.part", status_path);
    FILE *file = fopen(part, "w");
    if (!file) die(part);
    fprintf(file, "{\"exit_code\": %d, \"is_late\": %s, \"oom_kills\": %ld, ",
            WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
            is_late ? "true" : "false", kills < 0 ? 0 : kills - (kills_before < 0 ? 0 : kills_before));
    fprintf(file, "\"peak_memory_bytes\": %ld, \"started_at\": %.6f, \"finished_at\": %.6f, ",
            used.ru_maxrss * 1024L, started, wall());
    fprintf(file, "\"start_error\": ");
    if (start_errno) write_text(file, strerror(start_errno));
    else fprintf(file, "null");
    fprintf(file, "}\n");
    if (fclose(file) || rename(part, status_path)) die(status_path);
    /* A kubelet takes an init container whose control group was killed in for failed, whatever its
       status, and starts nothing after it; with status 0 it does not end the pod either. */
    if (kills > (kills_before < 0 ? 0 : kills_before)) return 137;
    return is_terminated && !is_late ? 143 : 0;
}
