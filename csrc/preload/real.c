/* The wrapped functions, and the start of the library. */
#include "preload.h"

#include <dlfcn.h>
#include <stddef.h>

static void *_Atomic real[FUNCTION_COUNT];

void *find_real(enum Function function) {
#define NAME_OF(name) #name,
    static const char *const names[] = {FUNCTIONS(NAME_OF)};
#undef NAME_OF
    /* Found when the library is loaded, since a child must not call the dynamic loader.  Before
     * that only constructors of other libraries come here. */
    void *found = real[function];
    if (found == NULL) real[function] = found = dlsym(RTLD_NEXT, names[function]);
    return found;
}

__attribute__((constructor)) static void load(void) {
    for (int function = 0; function < FUNCTION_COUNT; ++function) find_real(function);
    read_settings();
    remember_program();
    remember_given();
}
