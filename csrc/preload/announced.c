/* Descriptors whose numbers the next program is given: they are passed, not leaked.
 *
 * All words and variables are read once, whatever the number of descriptors, so the time is
 * that of reading the arguments: less than what execve(2) takes to copy them. */
#include "preload.h"

#include <string.h>
#include <unistd.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Without the case of ASCII letters; c is a lower one. */
static bool is_letter(char text, char c) { return (text | 0x20) == c; }

static bool is_alphanumeric(char c) {
    return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n'; }

/* Read the digits at *text and step over them; a number that is too long is NUMBERS. */
static int take_number(const char **text) {
    int number = 0;
    for (; is_digit(**text); ++*text)
        number = number < NUMBERS ? number * 10 + (**text - '0') : NUMBERS;
    return number;
}

/* "3", "3,4", "3:4;5" or, quoted, "'3'"; but not "3rd", and not the address "fd:3:ab". */
static void add_list(const char *text, struct Numbers *found) {
    if (*text == '\'' || *text == '"') ++text;
    while (is_digit(*text)) {
        const int number = take_number(&text);
        if (is_alphanumeric(*text)) return;
        add_to(found, number);
        if (*text == ',' || *text == ':' || *text == ';') ++text;
    }
}

static void add_all(const char *text, struct Numbers *found) {
    while (*text != '\0') {
        if (is_digit(*text)) add_to(found, take_number(&text));
        else ++text;
    }
}

/* "127.0.0.1:80=3;/run/web=4" */
static void add_behind_equals(const char *text, struct Numbers *found) {
    while ((text = strchr(text, '=')) != NULL) {
        ++text;
        if (is_digit(*text)) add_to(found, take_number(&text));
    }
}

const char *value_of(char *const *envp, const char *name) {
    const size_t length = strlen(name);
    for (; envp != NULL && *envp != NULL; ++envp)
        if (strncmp(*envp, name, length) == 0 && (*envp)[length] == '=')
            return *envp + length + 1;
    return NULL;
}

static void add_path(const char *text, const char *folder, struct Numbers *found) {
    if (!begins_with(text, folder)) return;
    text += strlen(folder);
    if (is_digit(*text)) add_to(found, take_number(&text));
}

/* fd=3, vhostfd=3, fds=3:4, Keep-Fds::=3, fd://3; as a word's beginning fd:3 and fd@3; and
 * --status-fd 3, where it stands in one text.  behind is what follows "fd". */
static void add_name(const char *behind, bool begins, bool option, struct Numbers *found) {
    if (is_letter(*behind, 's')) ++behind;
    if (begins_with(behind, "://")) behind += 3;
    else if (begins_with(behind, "::=")) behind += 3;
    else if (*behind == '=') ++behind;
    else if ((*behind == ':' || *behind == '@') && begins) {
        const char *number = ++behind, *end = number;
        take_number(&end);
        if (*end == ':') return; /* of an Ethernet or IPv6 address */
    } else if (is_blank(*behind) && option) {
        while (is_blank(*behind)) ++behind;
    } else return;
    add_list(behind, found);
}

/* Options whose value is a descriptor although their names do not end so: dbus-daemon(1). */
static bool takes_descriptor(const char *word) {
    return strcmp(word, "--print-address") == 0 || strcmp(word, "--print-pid") == 0;
}

/* What stands in a text of any kind: an argument, a shell's command line, a variable.
 * True if the next argument is the value of an option for a descriptor. */
static bool add_text(const char *text, struct Numbers *found) {
    bool option = *text == '-', begins = true;
    const bool known = option && takes_descriptor(text);
    for (const char *at = text; *at != '\0'; ++at) {
        switch (*at) {
        case '/':
            add_path(at, "/dev/fd/", found);
            add_path(at, "/proc/self/fd/", found);
            add_path(at, "/proc/thread-self/fd/", found);
            break;
        case '<':
        case '>': /* of a shell: >&3 */
            if (at[1] == '&' && is_digit(at[2])) add_list(at + 2, found);
            break;
        case '-':
            if (begins_with(at, "--jobserver-auth=")) add_list(strchr(at, '=') + 1, found);
            if (at == text || (!is_alphanumeric(at[-1]) && at[-1] != '-')) option = true;
            break;
        case 'f':
        case 'F':
            if (!is_letter(at[1], 'd')) break;
            /* The one name whose value is a count, add_listeners(). */
            if (at - text >= 7 && begins_with(at - 7, "LISTEN_FDS=")) break;
            if (option && (at[2] == '\0' || (is_letter(at[2], 's') && at[3] == '\0')))
                return true;
            add_name(at + 2, begins, option, found);
            break;
        default:
            if (is_blank(*at)) option = false;
        }
        begins = !is_alphanumeric(*at) && *at != ':';
    }
    return known;
}

/* sd_listen_fds(3).  Without LISTEN_PID, a program in between will still set it.  A process
 * that does not exist yet cannot be the one that LISTEN_PID names. */
static void add_listeners(const char *count, const char *pid, bool new_pid,
                          struct Numbers *found) {
    if (count == NULL || !is_digit(*count)) return;
    if (pid != NULL) {
        long named = 0;
        for (; is_digit(*pid) && named < 1L << 30; ++pid) named = named * 10 + (*pid - '0');
        if (new_pid || *pid != '\0' || named != getpid()) return;
    }
    const int end = FIRST + take_number(&count);
    for (int number = FIRST; number < end && number < NUMBERS; ++number) add_to(found, number);
}

/* The value of a variable of that name, or, where it ends in *, of one that begins so. */
static const char *value_if_named(const char *entry, const char *name) {
    while (*name != '\0' && *name != '*' && *name == *entry) ++name, ++entry;
    if (*name == '*') return (entry = strchr(entry, '=')) != NULL ? entry + 1 : NULL;
    return *name == '\0' && *entry == '=' ? entry + 1 : NULL;
}

/* Those whose names end in FD or FDS are known by that, add_name(); and the jobservers of
 * MAKEFLAGS and CARGO_MAKEFLAGS by their option. */
static void add_variable(const char *entry, struct Numbers *found) {
    static const char *const lists[] = {"NGINX", "WAYLAND_SOCKET", "EINHORN_FDS", "EINHORN_FD_*"};
    static const char *const behind_equals[] = {"FPM_SOCKETS*", "SERVER_STARTER_PORT"};
    const char *value;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; ++i)
        if ((value = value_if_named(entry, lists[i])) != NULL) add_all(value, found);
    for (size_t i = 0; i < sizeof behind_equals / sizeof *behind_equals; ++i)
        if ((value = value_if_named(entry, behind_equals[i])) != NULL) add_behind_equals(value, found);
    for (int i = 0; i < settings.variable_count; ++i)
        if ((value = value_if_named(entry, settings.variables[i])) != NULL) add_all(value, found);
    /* 5:tcp://127.0.0.1:80 */
    if ((value = value_if_named(entry, "PUMA_INHERIT_*")) != NULL && is_digit(*value))
        add_to(found, take_number(&value));
}

void read_announced(const struct Program *program, struct Numbers *found) {
    memset(found, 0, sizeof *found);
    if (program->executed >= 0) add_to(found, program->executed);
    bool value_follows = false;
    for (char *const *argv = program->argv; argv != NULL && *argv != NULL; ++argv) {
        if (value_follows) add_list(*argv, found);
        value_follows = add_text(*argv, found);
    }
    const char *count = NULL, *pid = NULL, *value;
    for (char *const *envp = program->envp; envp != NULL && *envp != NULL; ++envp) {
        /* Of two the first one is getenv(3)'s. */
        if (count == NULL && (value = value_if_named(*envp, "LISTEN_FDS")) != NULL) count = value;
        if (pid == NULL && (value = value_if_named(*envp, "LISTEN_PID")) != NULL) pid = value;
        add_variable(*envp, found);
        add_text(*envp, found);
    }
    add_listeners(count, pid, program->new_pid, found);
}
