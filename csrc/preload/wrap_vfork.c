/* The wrapper of vfork, which returns twice on one stack.  A wrapper in C is not possible: the
 * child would return first, and overwrite the return address of the parent.  Hence, as in libc
 * itself, the return address stays in a register during the system call.  Parent and child
 * then return like any function, and the child calls born() in between; it pushes below all
 * that its parent still needs. */
#include "preload.h"

#include <errno.h>

__attribute__((used, visibility("hidden"))) void forkfd_born_by_vfork(void) { born(true, 0); }

__attribute__((used, visibility("hidden"))) int forkfd_vfork_failed(long rc) {
    errno = (int)-rc;
    return -1;
}

#if defined(__x86_64__) && defined(__LP64__)
__asm__(".pushsection .text\n"
        ".globl vfork, __vfork\n"
        ".type vfork, @function\n"
        ".type __vfork, @function\n"
        "vfork:\n"
        "__vfork:\n"
        "    endbr64\n"
        "    popq %rdi\n"          /* the kernel keeps it for both */
        "    movl $58, %eax\n"     /* SYS_vfork */
        "    syscall\n"
        "    pushq %rdi\n"
        "    testq %rax, %rax\n"
        "    jz 1f\n"
        "    js 2f\n"
        "    ret\n"
        "1:  subq $8, %rsp\n"      /* the stack of a call is aligned to 16 */
        "    call forkfd_born_by_vfork\n"
        "    addq $8, %rsp\n"
        "    xorl %eax, %eax\n"
        "    ret\n"
        "2:  movq %rax, %rdi\n"
        "    jmp forkfd_vfork_failed\n"
        ".size vfork, . - vfork\n"
        ".size __vfork, . - __vfork\n"
        ".popsection\n");
#elif defined(__aarch64__)
__asm__(".pushsection .text\n"
        ".globl vfork, __vfork\n"
        ".type vfork, %function\n"
        ".type __vfork, %function\n"
        "vfork:\n"
        "__vfork:\n"
        "    hint #34\n"           /* bti c */
        "    mov x0, #0x4111\n"    /* CLONE_VM | CLONE_VFORK | SIGCHLD */
        "    mov x1, #0\n"
        "    mov x8, #220\n"       /* SYS_clone */
        "    svc #0\n"
        "    cbz x0, 1f\n"
        "    tbnz x0, #63, 2f\n"
        "    ret\n"
        "1:  stp x29, x30, [sp, #-16]!\n"
        "    bl forkfd_born_by_vfork\n"
        "    ldp x29, x30, [sp], #16\n"
        "    mov x0, #0\n"
        "    ret\n"
        "2:  b forkfd_vfork_failed\n"
        ".size vfork, . - vfork\n"
        ".size __vfork, . - __vfork\n"
        ".popsection\n");
#endif
