/* Whether the next program is given a descriptor's number: then it is passed, not leaked. */
#include "preload.h"

#include <string.h>
#include <unistd.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Read the digits at *text and step over them; a number that is too long is NUMBERS. */
static int take_number(const char **text) {
    int number = 0;
    for (; is_digit(**text); ++*text)
        number = number < NUMBERS ? number * 10 + (**text - '0') : NUMBERS;
    return number;
}

static bool names(const char *text, int number) {
    while (*text != '\0') {
        if (!is_digit(*text)) ++text;
        else if (take_number(&text) == number) return true;
    }
    return false;
}

/* The process substitutions of shells: /dev/fd/63, wherever it stands in an argument. */
static bool names_path(const char *text, const char *folder, int number) {
    while ((text = strstr(text, folder)) != NULL) {
        text += strlen(folder);
        if (is_digit(*text) && take_number(&text) == number) return true;
    }
    return false;
}

const char *value_of(char *const *envp, const char *name) {
    const size_t length = strlen(name);
    for (; envp != NULL && *envp != NULL; ++envp)
        if (strncmp(*envp, name, length) == 0 && (*envp)[length] == '=')
            return *envp + length + 1;
    return NULL;
}

/* sd_listen_fds(3).  Without LISTEN_PID, a program in between will still set it.  A process
 * that does not exist yet cannot be the one that LISTEN_PID names. */
static bool is_listener(int number, const struct Program *program) {
    const char *count = value_of(program->envp, "LISTEN_FDS");
    const char *pid = value_of(program->envp, "LISTEN_PID");
    if (count == NULL || !is_digit(*count) || number >= FIRST + take_number(&count)) return false;
    if (pid == NULL) return true;
    if (program->new_pid) return false;
    long named = 0;
    for (; is_digit(*pid) && named < 1L << 30; ++pid) named = named * 10 + (*pid - '0');
    return *pid == '\0' && named == getpid();
}

/* GNU make: "... --jobserver-auth=3,4 ..."; fifo:PATH names no number. */
static bool is_jobserver(int number, const char *flags) {
    static const char *const options[] = {"--jobserver-auth=", "--jobserver-fds="};
    for (size_t i = 0; i < sizeof options / sizeof *options; ++i) {
        const char *text = flags;
        while ((text = strstr(text, options[i])) != NULL) {
            text += strlen(options[i]);
            if (!is_digit(*text)) continue;
            if (take_number(&text) == number) return true;
            if (*text++ == ',' && is_digit(*text) && take_number(&text) == number) return true;
        }
    }
    return false;
}

bool is_announced(int number, const struct Program *program) {
    /* The whole value of each is a list of numbers. */
    static const char *const variables[] = {"NGINX", "GUNICORN_FD", "NODE_CHANNEL_FD",
                                            "WAYLAND_SOCKET"};
    if (number == program->executed || is_listener(number, program)) return true;
    for (char *const *argv = program->argv; argv != NULL && *argv != NULL; ++argv)
        if (names_path(*argv, "/dev/fd/", number) || names_path(*argv, "/proc/self/fd/", number))
            return true;
    const char *value = value_of(program->envp, "MAKEFLAGS");
    if (value != NULL && is_jobserver(number, value)) return true;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; ++i)
        if ((value = value_of(program->envp, variables[i])) != NULL && names(value, number))
            return true;
    for (int i = 0; i < settings.variable_count; ++i)
        if ((value = value_of(program->envp, settings.variables[i])) != NULL &&
            names(value, number))
            return true;
    return false;
}
