/* The settings: FORKFD_CLOSE_OTHERS=0, FORKFD_KEEP=3,7,NAME, FORKFD_LOG=path or descriptor. */
#include "preload.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct Settings settings = {.stop = true, .log_fd = -1};

char program_path[PATH_SIZE];
static char words[PATH_SIZE];    /* a copy: programs change their environment */
static char log_path[PATH_SIZE];

static void keep(int number) {
    if (settings.kept_count == MAX_KEPT || is_kept(number)) return;
    int place = settings.kept_count++;
    for (; place > 0 && settings.kept[place - 1] > number; --place)
        settings.kept[place] = settings.kept[place - 1];
    settings.kept[place] = number;
}

bool is_kept(int number) {
    for (int i = 0; i < settings.kept_count; ++i)
        if (settings.kept[i] == number) return true;
    return false;
}

/* Return the number that the whole text is, or -1. */
static int as_number(const char *text) {
    char *end;
    const long number = strtol(text, &end, 10);
    return *text < '0' || *text > '9' || *end != '\0' || number > INT_MAX ? -1 : (int)number;
}

static bool is_shell(void) {
    static const char *const shells[] = {"ash",  "bash", "busybox", "dash", "fish", "ksh",
                                         "ksh93", "lksh", "mksh",    "sh",   "yash", "zsh"};
    const char *slash = strrchr(program_path, '/');
    const char *name = slash ? slash + 1 : program_path;
    for (size_t i = 0; i < sizeof shells / sizeof *shells; ++i)
        if (strcmp(name, shells[i]) == 0) return true;
    return false;
}

void read_settings(void) {
    const char *value = getenv("FORKFD_CLOSE_OTHERS");
    settings.stop = value == NULL || strcmp(value, "0") != 0;
    if (readlink("/proc/self/exe", program_path, sizeof program_path - 1) < 0)
        program_path[0] = '\0';
    settings.shell = is_shell();

    if ((value = getenv("FORKFD_LOG")) != NULL && *value != '\0' && strlen(value) < PATH_SIZE) {
        strcpy(log_path, value);
        settings.log_fd = as_number(value);
        if (settings.log_fd < 0) settings.log_path = log_path;
        else if (settings.log_fd >= FIRST) keep(settings.log_fd);
    }
    if ((value = getenv("FORKFD_KEEP")) == NULL || strlen(value) >= sizeof words) return;
    strcpy(words, value);
    char *rest = NULL;
    for (char *word = strtok_r(words, ", ", &rest); word; word = strtok_r(NULL, ", ", &rest)) {
        const int number = as_number(word);
        if (number >= FIRST) keep(number);
        else if (number < 0 && settings.variable_count < MAX_VARIABLES)
            settings.variables[settings.variable_count++] = word;
    }
}
