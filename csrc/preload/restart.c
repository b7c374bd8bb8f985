/* Whether a program executes itself in its own place, as servers do that restart or upgrade
 * themselves: then it is meant to have all that it has left inheritable, and looks it up in a
 * variable, in the kernel, or in a file of its own.
 *
 * It is itself if all of this holds:
 *  1. its process is the one that the program was started in, or has taken its place: a child
 *     whose parent has ended since, as daemons have it;
 *  2. the file is the one that runs: the same inode, or the same path with a new file; or the
 *     script, by that path, whose interpreter runs;
 *  3. where both command lines have operands (arguments that are no options), they have one in
 *     common among the first ones: the script, the module, the subcommand.  So a launcher
 *     written in Python that becomes another program written in Python is not itself. */
#include "preload.h"

#include <fcntl.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_WORDS = 64, MAX_OPERANDS = 8 };

struct Operands {
    const char *words[MAX_OPERANDS];
    int count;
};

static pid_t started_as;
static uint64_t program_identity;
static char executed_path[PATH_SIZE]; /* of us, as execve(2) got it: a script's own */
static bool by_script;                /* it is one, and the interpreter runs */
static char command_line[PATH_SIZE];  /* its beginning */
static struct Operands operands;

static bool is_option(const char *word) { return word[0] == '-' && word[1] != '\0'; }

/* After -m or -c of Python, -e of Perl, and after "--", there is no doubt. */
static bool is_before_operand(const char *word) {
    return strlen(word) == 2 && strchr("mce-", word[1]) != NULL;
}

/* Those that may be the first operand: a word behind an option can also be its value. */
static void read_operands(const char *const *words, struct Operands *found) {
    bool certain = true;
    found->count = 0;
    for (int i = 0; i < MAX_WORDS && words[i] != NULL && found->count < MAX_OPERANDS; ++i) {
        if (is_option(words[i])) {
            certain = is_before_operand(words[i]);
            continue;
        }
        found->words[found->count++] = words[i];
        if (certain) return;
        certain = true;
    }
}

static void read_command_line(void) {
    const char *words[MAX_WORDS + 1];
    const int file =
        (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    const long length = syscall(SYS_read, file, command_line, sizeof command_line - 1);
    syscall(SYS_close, file);
    int count = 0;
    for (char *at = command_line; at < command_line + length && count < MAX_WORDS;
         at += strlen(at) + 1)
        words[count++] = at;
    words[count] = NULL;
    if (count != 0) read_operands(words + 1, &operands);
}

void remember_program(void) {
    started_as = getpid();
    program_identity = identity_at(AT_FDCWD, "/proc/self/exe");
    const char *path = (const char *)getauxval(AT_EXECFN);
    if (path != NULL && strlen(path) < sizeof executed_path) strcpy(executed_path, path);
    by_script = identity_at(AT_FDCWD, executed_path) != program_identity;
    read_command_line();
}

static const char *name_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* "app.py" and "/srv/app.py", whatever the current directories were. */
static bool ends_with_path(const char *path, const char *end) {
    while (begins_with(end, "./")) end += 2;
    const size_t length = strlen(path), tail = strlen(end);
    if (tail == 0 || tail > length || strcmp(path + length - tail, end) != 0) return false;
    return tail == length || path[length - tail - 1] == '/' || end[0] == '/';
}

/* "shop.web", of python -m, and /srv/shop/web.py or /srv/shop/web/__main__.py, which is in
 * sys.argv. */
static bool is_file_of_module(const char *path, const char *module) {
    static const char *const endings[] = {"/__main__.py", ".py"};
    const size_t name = strlen(module);
    for (int i = 0; i < 2; ++i) {
        const size_t length = strlen(path), ending = strlen(endings[i]);
        if (length < name + ending || strcmp(path + length - ending, endings[i]) != 0) continue;
        const char *start = path + length - ending - name;
        size_t same = 0;
        while (same < name && (start[same] == module[same] ||
                               (start[same] == '/' && module[same] == '.')))
            ++same;
        if (same == name && (start == path || start[-1] == '/')) return true;
    }
    return false;
}

static bool is_same_word(const char *before, const char *now) {
    return ends_with_path(before, now) || ends_with_path(now, before) ||
           is_file_of_module(now, before);
}

static bool has_operand(const char *word) {
    for (int i = 0; i < operands.count; ++i)
        if (is_same_word(operands.words[i], word)) return true;
    return false;
}

static bool has_common_operand(char *const *argv) {
    struct Operands next = {.count = 0};
    if (argv != NULL && argv[0] != NULL) read_operands((const char *const *)argv + 1, &next);
    if (operands.count == 0 || next.count == 0) return true;
    for (int i = 0; i < next.count; ++i)
        if (has_operand(next.words[i])) return true;
    return false;
}

/* Where the file was replaced: by an upgrade, for which programs restart themselves. */
static bool is_at_our_path(int folder, const char *path) {
    char link[32] = "/proc/thread-self/fd/", target[1024], *at = link + strlen(link);
    const int file = (int)syscall(SYS_openat, folder, path, O_PATH | O_CLOEXEC);
    if (file < 0) return false;
    int digits = 1;
    for (int rest = file; rest >= 10; rest /= 10) ++digits;
    for (int rest = file, i = digits; i-- > 0; rest /= 10) at[i] = (char)('0' + rest % 10);
    at[digits] = '\0';
    const long length = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
    syscall(SYS_close, file);
    if (length <= 0) return false;
    target[length] = '\0';
    return strcmp(target, program_path) == 0;
}

/* "#!/usr/bin/python3", or "#!/usr/bin/env python3", where that is what runs. */
static bool is_script_of_ours(int folder, const char *path) {
    char line[256];
    const int file = (int)syscall(SYS_openat, folder, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) return false;
    const long length = syscall(SYS_read, file, line, sizeof line - 1);
    syscall(SYS_close, file);
    if (length < 2 || line[0] != '#' || line[1] != '!') return false;
    line[length] = '\0';
    line[strcspn(line, "\n")] = '\0';
    char *word = line + 2 + strspn(line + 2, " \t");
    char *rest = word + strcspn(word, " \t");
    if (*rest != '\0') *rest++ = '\0';
    if (identity_at(AT_FDCWD, word) == program_identity) return true;
    if (strcmp(name_of(word), "env") != 0) return false;
    rest += strspn(rest, " \t");
    if (begins_with(rest, "-S")) rest += 2 + strspn(rest + 2, " \t");
    rest[strcspn(rest, " \t")] = '\0';
    return *rest != '\0' && (strcmp(rest, name_of(executed_path)) == 0 ||
                             strcmp(rest, name_of(program_path)) == 0);
}

bool is_restart(const struct Program *program) {
    const int folder = program->executed >= 0 ? program->executed : AT_FDCWD;
    const char *path = program->path;
    if (path == NULL || program_identity == 1) return false;
    if (started_as != getpid() ? !is_daemon() : was_born()) return false;
    const bool as_before = *path != '\0' && strcmp(path, executed_path) == 0;
    if (as_before && by_script) return true;
    if (as_before || identity_at(folder, path) == program_identity ||
        (*path != '\0' && is_at_our_path(folder, path)))
        return has_common_operand(program->argv);
    return *path != '\0' && has_operand(path) && is_script_of_ours(folder, path);
}
