"""The system calls that the sandbox refuses, as a classic BPF program for ``bwrap --seccomp``.

Namespaces and an ordinary uid keep the host away; this list closes what they leave open: memory
that no process's resident size shows (memfd, System V, message queues, new mounts), the session
keyring that is inherited from the host, and ways to look into, slow down or starve the first
process, which has the same uid.
"""

from __future__ import annotations

import errno
import platform
import struct

from cwm_jax.sandbox.outcome import SandboxError

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_X32 = 0x40000000  # numbers from here on are x86_64's second table
# Columns: x86_64 and aarch64. Source: arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_OWN_PROCESS_ONLY = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low half of argument 0


def seccomp_program(machine: str = platform.machine()) -> bytes:
    """Returns the filter for this kind of processor.

    Raises:
        SandboxError: for a processor whose numbers are not in the table.
    """
    if machine not in _AUDIT_ARCH:
        raise SandboxError(
            f"the sandbox has no table of system calls for {machine!r}, only for "
            f"{sorted(_AUDIT_ARCH)}: run on one of these, or pass unsafe=True / --unsafe"
        )
    column = list(_AUDIT_ARCH).index(machine)
    refuse = _operation(_RETURN, _ERRNO | errno.EPERM)
    program = [
        _operation(_LOAD, _ARCH),
        _operation(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _operation(_RETURN, _KILL),
        _operation(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_operation(_AT_LEAST, _X32, 0, 1), _operation(_RETURN, _KILL)]
    for numbers in _REFUSED.values():
        program += [_operation(_EQUAL, numbers[column], 0, 1), refuse]
    # Its flags are in memory, where a filter cannot look; libc then takes clone.
    program += [
        _operation(_EQUAL, _CLONE3[column], 0, 1),
        _operation(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for numbers in _OWN_PROCESS_ONLY.values():  # argument 0 is the process, 0 the caller
        program += _on_argument(numbers[column], _operation(_EQUAL, 0, 1, 0))
    program += _on_argument(_CLONE[column], _operation(_ANY_BIT, _NEW_NAMESPACES, 0, 1))
    return b"".join([*program, _operation(_RETURN, _ALLOW)])


def _on_argument(number: int, test: bytes) -> list[bytes]:
    """Refuses the call where ``test`` does not jump, allows it where it jumps by one."""
    return [
        _operation(_EQUAL, number, 0, 4),
        _operation(_LOAD, _ARGUMENT),
        test,
        _operation(_RETURN, _ERRNO | errno.EPERM),
        _operation(_RETURN, _ALLOW),
    ]


def _operation(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)
