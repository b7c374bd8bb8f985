"""The modules that stand in for the interpreter's own: subprocess, posix_spawn, asyncio."""
