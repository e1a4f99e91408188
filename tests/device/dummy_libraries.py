"""Tiny shared libraries that behave like ``libcuda``, compiled when a test asks for them.

They are real ELF files with the driver's names and the three symbols that a probe calls, so the dynamic linker and
the probe are tested as they are, on a machine without a GPU.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

COMPILER = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="NOT TESTED: no C compiler (cc, gcc, clang) for dummies")

BEHAVIOURS = {
    "plain": "",
    # cuInit never returns; the process id is written to <library>.pid
    "hang": 'WHEN_INIT { note(".pid", getpid()); for (;;) pause(); }',
    # the same, with a grandchild that does not return either; its process id is written to <library>.child
    "hang_with_child": 'WHEN_INIT { note(".child", forked()); for (;;) pause(); }',
    # cuInit is fine, but leaves a grandchild behind which holds every file open
    "leave_child": 'WHEN_INIT { note(".child", forked()); }',
    "segfault": "WHEN_INIT { signal(SIGSEGV, SIG_DFL); *(volatile int *)8 = 1; }",
    "abort": "WHEN_INIT { abort(); }",
    "exit": "WHEN_INIT { _exit(3); }",
    # process id and session are written to <library>.pid and <library>.session
    "session": 'WHEN_INIT { note(".pid", getpid()); note(".session", getsid(0)); }',
    # writes to every file that is open until it is stopped
    "flood": "WHEN_INIT { for (;;) for (int fd = 1; fd < 64; fd++) write(fd, TEXT, sizeof TEXT - 1); }",
    # talks to standard output while it is loaded
    "print": 'WHEN_LOADED { printf("a banner\\n"); fflush(stdout); }',
    # the same, with TEXT to every file that is open
    "lie": "WHEN_LOADED { for (int fd = 1; fd < 64; fd++) write(fd, TEXT, sizeof TEXT - 1); }",
    # says TEXT to every file that is open, and leaves with status 0 before anything else can be said
    "lie_and_leave": "WHEN_LOADED { for (int fd = 1; fd < 64; fd++) write(fd, TEXT, sizeof TEXT - 1); _exit(0); }",
    # closes every file and hangs
    "close": "WHEN_INIT { for (int fd = 0; fd < 64; fd++) close(fd); for (;;) pause(); }",
    # 802 (CUDA_ERROR_SYSTEM_NOT_READY) at the first two calls of cuInit in any process; counted in <library>.count
    "ready_at_third": 'WHEN_INIT { if (counted(".count") < 3) return 802; }',
    # cuInit returns what the JIT compiler that the linker finds for it says: see build_jit_compiler; 221 without one
    "jit": """WHEN_INIT {
        void *jit = dlopen("libnvidia-ptxjitcompiler.so.1", RTLD_NOW);
        int (*code)(void) = jit ? (int (*)(void))dlsym(jit, "jit_code") : 0;
        return code ? code() : 221;
    }""",
    "no_init": "#define WITHOUT_INIT",
    "no_version": "#define WITHOUT_VERSION",
    "no_count": "#define WITHOUT_COUNT",
    # there, but they fail
    "version_fails": "#define VERSION_CODE 999",
    "count_fails": "#define COUNT_CODE 999",
}

_LIBCUDA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>
#define WHEN_INIT static int when_init(void)
#define WHEN_LOADED __attribute__((constructor)) static void when_loaded(void)

static FILE *beside(const char *suffix, const char *mode) {
    static char path[4096];
    Dl_info info;
    dladdr((void *)beside, &info);
    char *real = realpath(info.dli_fname, NULL);
    snprintf(path, sizeof path, "%s%s", real, suffix);
    return fopen(path, mode);
}
__attribute__((unused)) static void note(const char *suffix, int number) {
    FILE *file = beside(suffix, "w");
    fprintf(file, "%d\\n", number);
    fclose(file);
}
__attribute__((unused)) static int forked(void) {
    int pid = fork();
    while (!pid) pause();
    return pid;
}
__attribute__((unused)) static int counted(const char *suffix) {
    FILE *file = beside(suffix, "a");
    flock(fileno(file), LOCK_EX);
    fputs("x", file);
    fflush(file);
    int count = (int)ftell(file);
    fclose(file);
    return count;
}

@BEHAVIOUR@

#ifndef VERSION_CODE
#define VERSION_CODE 0
#endif
#ifndef COUNT_CODE
#define COUNT_CODE 0
#endif
#ifndef WITHOUT_VERSION
int cuDriverGetVersion(int *version) { if (!VERSION_CODE) *version = CUDA; return VERSION_CODE; }
#endif
#ifndef WITHOUT_INIT
int cuInit(unsigned flags) { (void)flags; @CALL@ return INIT_CODE; }
#endif
#ifndef WITHOUT_COUNT
int cuDeviceGetCount(int *count) { if (!COUNT_CODE) *count = DEVICES; return COUNT_CODE; }
#endif
"""


def build_libcuda(
    folder: Path,
    version: str = "575.57.08",
    init_code: int = 0,
    cuda: int = 12090,
    devices: int = 1,
    behaviour: str = "plain",
    *,
    text: str = "x\n",
    links: bool = True,
    note: str | None = None,
) -> Path:
    """Put a dummy ``libcuda.so.<version>`` with the SONAME ``libcuda.so.1`` into a folder, which is made if need be.

    Args:
        folder: where to.
        version: the end of the file's name.
        init_code: what ``cuInit`` returns, unless the behaviour says otherwise.
        cuda: what ``cuDriverGetVersion`` tells.
        devices: what ``cuDeviceGetCount`` tells.
        behaviour: one of ``BEHAVIOURS``.
        text: what the lying and flooding behaviours write.
        links: also make ``libcuda.so.1`` and ``libcuda.so``.
        note: text of the ELF note ``.note.cuda.fwd_compatibility``; none if ``None``.

    Returns:
        The file, not the links.
    """
    body = BEHAVIOURS[behaviour]
    call = ""
    if "WHEN_INIT" in body:
        # a hook that falls off its end goes on to return INIT_CODE
        body = body[: body.rindex("}")] + " return INIT_CODE; }"
        call = "return when_init();"
    source = _LIBCUDA.replace("@BEHAVIOUR@", body).replace("@CALL@", call)
    written = "".join(f"\\{byte:03o}" for byte in text.encode())
    if note is not None:
        source += _note(note)
    head = f'#define INIT_CODE {init_code}\n#define CUDA {cuda}\n#define DEVICES {devices}\n#define TEXT "{written}"\n'
    return _put(folder, f"libcuda.so.{version}", "libcuda.so.1", head + source, ("libcuda.so",) if links else None)


def build_jit_compiler(folder: Path, version: str = "575.57.08", code: int = 0, *, links: bool = True) -> Path:
    """Put a dummy ``libnvidia-ptxjitcompiler.so.<version>`` into a folder; its ``jit_code`` returns ``code``."""
    name = f"libnvidia-ptxjitcompiler.so.{version}"
    source = f"int jit_code(void) {{ return {code}; }}"
    return _put(folder, name, "libnvidia-ptxjitcompiler.so.1", source, () if links else None)


def _put(folder: Path, name: str, soname: str, source: str, links: tuple[str, ...] | None) -> Path:
    """Compile into the folder; ``links`` are made besides the SONAME's, and neither if ``None``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.unlink(missing_ok=True)  # never written over: a process may have it mapped
    path.write_bytes(_compiled(source, soname))
    path.chmod(0o755)
    for link in (soname, *links) if links is not None else ():
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(name)
    return path


@functools.cache
def _compiled(source: str, soname: str) -> bytes:
    if COMPILER is None:
        pytest.skip("NOT TESTED: no C compiler (cc, gcc, clang) for dummy libraries")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dummy.c").write_text(source)
        command = [COMPILER, "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", "-o", "dummy.so", "dummy.c", "-ldl"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return (Path(folder) / "dummy.so").read_bytes()


def _note(text: str) -> str:
    """C source of the ELF note: sizes of name and text, type, the name with zeros to a multiple of 4, the text."""
    name, content = b"NVIDIA Corporation\0\0", text.encode()
    # the name's own size counts one closing zero
    words = f".long {len(name) - 1}\\n.long {len(content)}\\n.long 1\\n"
    numbers = "".join(f".byte {byte}\\n" for byte in name + content)
    section = '.pushsection .note.cuda.fwd_compatibility, \\"\\", %note\\n.balign 4\\n'
    return f'\n__asm__("{section}{words}{numbers}.balign 4\\n.popsection\\n");\n'
