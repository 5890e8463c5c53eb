"""A filter of system calls: those that reach other processes, change mounts or namespaces, or are new and often broken.

Owns which calls, by architecture, as a classic BPF program. Must not know who installs it.
"""

import errno
import platform
import socket
import struct
from collections.abc import Collection

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
# name -> its number on x86_64 and on aarch64, None where there is none; from 424 on they are the same everywhere
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "perf_event_open": (298, 241),
    # keys of the user's session
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # much kernel behind few checks; io_uring would also pass this filter by
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "fanotify_init": (300, 262), "modify_ldt": (154, None), "uselib": (134, None),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268), "open_by_handle_at": (304, 265),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip
TRUNCATE = (76, 45)
CLONE, CLONE3, IOCTL, SOCKET = (56, 220), (435, 435), (16, 29), (41, 198)
NEW_NAMESPACES = 0x7E020080  # CLONE_NEWTIME, NS, CGROUP, UTS, IPC, USER, PID, NET
PUSHES_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: what they write, the terminal reads as typed
ORDINARY_FAMILIES = (
    socket.AF_UNIX,
    socket.AF_INET,
    socket.AF_INET6,
    16,
)  # 16: AF_NETLINK, by which addresses are listed

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARG_0, ARG_1 = 0, 4, 16, 24  # offsets in struct seccomp_data; the low halves of arguments
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
Instruction = tuple[int, int, int, int]  # code, how many to skip when true and when false, value


def available() -> bool:
    """Whether this architecture has a table."""
    return platform.machine() in AUDIT_ARCH


def program(families: Collection[int] = ORDINARY_FAMILIES, truncates: bool = True) -> bytes:
    """The filter as struct sock_filter[]. Only sockets of these families can be made; a pair of connected ones always.

    `truncates` allows truncate(2), which Landlock before Linux 6.2 does not see.
    """
    machine = platform.machine()
    column = 0 if machine == "x86_64" else 1
    refused = [*REFUSED.values()] + ([] if truncates else [TRUNCATE])
    code = [*_only(ARCH, AUDIT_ARCH[machine]), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, X32_BIT), _fails(errno.ENOSYS)]
    for numbers in refused:
        number = numbers[column]
        if number is not None:
            code += [(EQUAL, 0, 1, number), _fails(errno.EPERM)]
    # its flags lie in memory, which a filter cannot read: libraries then use clone
    code += [(EQUAL, 0, 1, CLONE3[column]), _fails(errno.ENOSYS)]
    code += _when(CLONE[column], ARG_0, [(ANY_BIT, 0, 1, NEW_NAMESPACES), _fails(errno.EPERM)])
    pushes = [step for value in PUSHES_INPUT for step in ((EQUAL, 0, 1, value), _fails(errno.EPERM))]
    code += _when(IOCTL[column], ARG_1, pushes)
    allowed = [step for family in families for step in ((EQUAL, 0, 1, int(family)), (RETURN, 0, 0, ALLOW))]
    code += _when(SOCKET[column], ARG_0, [*allowed, _fails(errno.EPERM)])
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def _only(offset: int, value: int) -> list[Instruction]:
    """Calls of another architecture have other numbers."""
    return [(LOAD, 0, 0, offset), (EQUAL, 1, 0, value), (RETURN, 0, 0, KILL)]


def _when(number: int, argument: int, steps: list[Instruction]) -> list[Instruction]:
    """Steps on the low half of an argument of one call. Afterwards the number is loaded again."""
    return [(EQUAL, 0, len(steps) + 2, number), (LOAD, 0, 0, argument), *steps, (LOAD, 0, 0, NUMBER)]


def _fails(code: int) -> Instruction:
    return (RETURN, 0, 0, ERRNO | code)
