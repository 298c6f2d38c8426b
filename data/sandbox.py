"""
Code that a model wrote runs here, in a process of its own from which nothing of this machine can be seen or reached.

    run_python('print(6 * 7)')  ->  {'status': 'ok', 'text': '42\n'}

Linux on x86_64 only. Every layer below is required: where one is missing, nothing is run and the answer is 'refused' with the reason
(calculate() of data/tools.py remains). The caller starts one small server process, a Python with the common modules loaded and an empty
environment, which forks for every call; that saves the start of an interpreter:

    caller --socket--> server --fork--> keeper --fork--> the code: process 1 of its pid namespace, the steps are taken before it runs
                                        the keeper, outside that namespace, holds the clock: kills at the deadline or when the caller left

  1. User 65534 (root steps down first, for good), then new user, pid, net, mount, ipc and uts namespaces.
  2. A new root, by pivot_root: a tmpfs that holds Python's standard library (read-only bind) and /tmp (tmpfs of disk_mb, noexec); the old
     root is unmounted. No /proc, /sys, /dev, and only the shared libraries that are loaded already.
  3. All capabilities dropped, NO_NEW_PRIVS; the code dies with the keeper (parent-death signal), the keeper with the server.
  4. Limits: address space, CPU seconds, file size, open files, threads, no core, no locked memory. One process per call, by step 6, so
     that memory is bounded by memory_mb + disk_mb.
  5. Landlock: read the library, read and write /tmp, no TCP, no abstract sockets or signals to outside (where its version knows them).
  6. seccomp: a list of the system calls that Python's library needs. Not in it is what starts a program or a process (threads may), opens
     a socket (pairs may) or memory that no limit counts, mounts, makes namespaces, traces, keys, io_uring, bpf, perf, userfaultfd: EPERM.

**Grading.** Nothing that the code prints about itself is evidence: it can print 'all tests passed', leave with status 0, or replace print,
==, sys.stdout and a test harness in its own process. So a verifier sends in hidden inputs, keeps the expected values on its own side and
compares the whole text here: passes() below. Only 'refused' and 'timeout' are said by processes that the code cannot reach.
"""
import sys
if __name__ == '__main__':
    sys.path.pop(0)               # this folder: its files shall not stand in for modules of the library
import math, os, select, signal, socket, struct, subprocess, threading, time

MAX_CODE = 100_000                # bytes
UID = 65534                       # nobody's
SETUP = 10                        # seconds that the steps before the code may take (4 milliseconds on an idle machine)
REFUSED = 'no sandbox on this machine: '

# ---------------------------------------------------------------- the caller's side

def run_python(code, seconds=2.0, memory_mb=256, disk_mb=16, max_output=10_000):
    """
    Runs code (str) -> dict(status, text). text: stdout and stderr, decoded with replacement, at most max_output bytes, then perhaps a note.
    status 'ok': exit status 0; 'error': an exception, another exit status, a signal, too much output; 'timeout': `seconds` of wall-clock
    were over; 'refused': nothing was run, text is one line that says why. memory_mb: address space, with about 60 of Python's own; disk_mb:
    /tmp. Whatever the code is, this does not raise. From several threads and forked processes at a time, if need be.
    """
    data = code.encode('utf-8', 'replace')
    if len(data) > MAX_CODE:
        return dict(status='error', text=f'code of {len(data)} bytes: at most {MAX_CODE}')
    try:
        (mine, theirs), (r, w) = socket.socketpair(), os.pipe()
        with mine, open(r, 'rb', buffering=0) as out:       # mine closed early: the keeper sees it, and kills
            try:
                request(struct.pack('<dII', seconds, memory_mb, disk_mb) + data, [theirs.fileno(), w])
            finally:
                theirs.close(), os.close(w)
            os.set_blocking(r, False)                       # read() is then None if there is nothing yet, and b'' at the end
            text, said, end, poll = bytearray(), b'', time.monotonic() + SETUP + seconds + .5, select.poll()
            poll.register(r, select.POLLIN), poll.register(mine, select.POLLIN)
            while not said and len(text) <= max_output and (left := end - time.monotonic()) > 0:
                for fd, _ in poll.poll(left * 1000):
                    if fd != r:
                        said = os.read(fd, 4096) or b'error [the sandbox was killed from outside]'
                    elif (chunk := out.read(65536)) == b'':         # closed by the code, which may still run
                        poll.unregister(r)
                    else:
                        text += chunk or b''
            while said and len(text) <= max_output and (chunk := out.read(65536)):
                text += chunk
        kind, _, note = (said or b'timeout [no answer from the sandbox: given up]').decode().partition(' ')
        if len(text) > max_output:
            kind, note = 'error', f'[output over {max_output} bytes: stopped]'
        text = text[:max_output].decode('utf-8', 'replace')
        return dict(status=kind, text=text + '\n' * (text[-1:] not in '\n' and note != '') + note)
    except OSError as e:
        return dict(status='refused', text=f'{REFUSED}{e.strerror or e}')

def passes(code, cases, seconds=2.0):
    """Verifier. cases: (expression, expected value) pairs, as ('f(3)', 9). True if after `code` the expressions have the repr of those
    values (numbers, strings, lists...), which never enter the sandbox: to pass, `code` must know them. It must print nothing itself."""
    asks = ''.join(f'\nprint(repr({ask}))' for ask, _ in cases)
    return run_python(code + asks, seconds) == dict(status='ok', text=''.join(f'{want!r}\n' for _, want in cases))

server, lock = None, threading.Lock()

def request(message, fds):
    """Hands a message and file descriptors to the server, which is started if there is none, or none any more. OSError if that fails."""
    global server
    for attempt in (0, 1):
        with lock:
            if server is None:
                if sys.platform != 'linux' or os.uname().machine != 'x86_64':
                    raise OSError(f'Linux on x86_64 is needed, this is {sys.platform} on {os.uname().machine}')
                server, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
                server.settimeout(SETUP)
                python = [getattr(sys, '_base_executable', sys.executable), '-s', '-S', '-B', os.path.abspath(__file__)]
                env = {'PYTHONHASHSEED': '0', 'MALLOC_ARENA_MAX': '1'}          # sets in the same order every time; threads of 8 MB, not 72
                with theirs:      # returncode: nobody waits for it, no warning
                    subprocess.Popen(python, cwd='/', env=env, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                     start_new_session=True).returncode = 0
            now = server
        try:
            return socket.send_fds(now, [message], fds)
        except OSError:
            with lock:
                if server is now:
                    server = None
            if attempt:
                raise

# ---------------------------------------------------------------- the server's side, a process of its own

MODULES = ('math cmath random re json string itertools functools collections heapq bisect statistics fractions decimal datetime calendar '
           'copy typing dataclasses enum textwrap traceback hashlib zlib bz2 lzma sqlite3 unicodedata csv base64 pprint asyncio').split()

def serve():
    """Loop of the server: a message and two descriptors from stdin (a socket) -> a keeper. Ends when the caller is gone."""
    for name in MODULES:          # their shared libraries are not to be seen later
        try:
            __import__(name)
        except ImportError:
            pass
    os.environ.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    inbox = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)                 # /dev/null
    while True:
        message, fds, _, _ = socket.recv_fds(inbox, MAX_CODE + 64, 2)
        if not message:
            os._exit(0)
        parent = os.getpid()
        if not os.fork():
            inbox.close()
            keep(message, socket.socket(fileno=fds[0]), fds[1], parent)
        for fd in fds:
            os.close(fd)

def keep(message, caller, out, parent):
    """The keeper: builds the namespaces, forks the code's process, waits, kills it at the deadline, says how it ended. Never returns."""
    say, pid = b'', None
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        seconds, memory_mb, disk_mb = struct.unpack_from('<dII', message)
        outside(parent, disk_mb)
        mine, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            mine.close(), caller.close()
            inside(message[16:], theirs, out, seconds, memory_mb, disk_mb)
        theirs.close(), os.close(out)
        mine.settimeout(SETUP)
        poll = select.poll()
        poll.register(system('pidfd_open', 434, pid, 0), select.POLLIN), poll.register(caller, select.POLLIN)
        say = mine.recv(1000) or f'refused {REFUSED}its process ended before the code'.encode()
        if say == b'run':
            say = b'' if poll.poll(seconds * 1000) else f'timeout [still running after {seconds:g} s: killed]'.encode()
    except Exception as e:
        say = f'refused {REFUSED}{e}'.encode()
    if pid:
        os.kill(pid, signal.SIGKILL)                        # if it has ended, it is a zombie still: the number is its own
        how = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        say = say or {0: 'ok', 1: 'error'}.get(how, f'error [exit status {how}]' if how > 0 else
                                               f'error [killed by signal {-how}: a limit, or a crash]').encode()
    try:
        caller.sendall(say)
    finally:
        os._exit(0)

def system(what, number, *args):
    """A system call by its number on x86_64; OSError that names it (`what`) if it fails."""
    r = libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if r < 0:
        raise OSError(f'{what}: {os.strerror(ctypes.get_errno())}')
    return r

CAPSET, PIVOT_ROOT, PRCTL, MOUNT, UMOUNT, SETHOSTNAME, UNSHARE = 126, 155, 157, 165, 166, 170, 272
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446
NEW = 0x10000000 | 0x20000000 | 0x40000000 | 0x20000 | 0x8000000 | 0x4000000     # user, pid, net, mount, ipc, uts
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
LIBRARY = os.path.dirname(os.path.abspath(os.__file__))

def outside(parent, disk_mb):
    """Steps 1 and 2, by the keeper."""
    os.chdir(LIBRARY)             # below, '.': its parents may be closed to the user that we become
    if os.geteuid() == 0:
        for number, *args in ((116, 0, None), (119, UID, UID, UID), (117, UID, UID, UID)):
            system('stepping down from root (setgroups, setresgid, setresuid)', number, *args)
        system('dumpable', PRCTL, 4, 1, 0, 0, 0)            # else /proc/self belongs to root
    system('parent-death signal', PRCTL, 1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:    # it has ended before that call
        os._exit(1)
    write = lambda name, text: open(f'/proc/self/{name}', 'w').write(text)
    write('oom_score_adj', '1000')                          # the first to go where memory runs out
    uid, gid = os.getuid(), os.getgid()                     # seen from outside
    system('user, pid, net, mount, ipc and uts namespaces (unshare)', UNSHARE, NEW)
    write('setgroups', 'deny'), write('uid_map', f'{UID} {uid} 1'), write('gid_map', f'{UID} {gid} 1')
    system('host name', SETHOSTNAME, b'sandbox', 7)
    root = '/tmp'                 # any folder that exists: what is mounted over it is seen in our namespace only
    system('private mounts', MOUNT, b'none', b'/', None, REC | PRIVATE, None)
    tmpfs = lambda path, options: system('tmpfs', MOUNT, b'tmpfs', path.encode(), b'tmpfs', NOSUID | NODEV | NOEXEC, options.encode())
    tmpfs(root, 'size=1m,nr_inodes=100,mode=755')
    os.mkdir(f'{root}/tmp')
    tmpfs(f'{root}/tmp', f'size={disk_mb}m,nr_inodes=1000,mode=700')
    os.makedirs(root + LIBRARY, exist_ok=True)
    system('bind of the library', MOUNT, b'.', (root + LIBRARY).encode(), None, BIND | REC, None)
    attr = lambda path, recursive, flags: system(f'read-only {path}', MOUNT_SETATTR, -100, (root + path).encode(), recursive,
                                                 struct.pack('<4Q', flags, 0, 0, 0), 32)
    attr(LIBRARY, 0x8000, RDONLY | NOSUID | NODEV), attr('', 0, RDONLY | NOSUID | NODEV | NOEXEC)
    os.chdir(root)
    system('pivot_root', PIVOT_ROOT, b'.', b'.')
    system('unmounting the old root', UMOUNT, b'.', 2)
    os.chdir('/tmp')
    os.listdir(LIBRARY)           # readable to this user?

def inside(code, keeper, out, seconds, memory_mb, disk_mb):
    """Steps 3 to 6, in the process of the code, then the code. Never returns."""
    try:
        system('parent-death signal', PRCTL, 1, signal.SIGKILL, 0, 0, 0)
        if select.select([keeper], [], [], 0)[0]:           # readable, closed: the keeper is gone already
            os._exit(1)
        os.setsid(), os.dup2(out, 1), os.dup2(out, 2)
        for what, most in (('AS', memory_mb << 20), ('CPU', math.ceil(seconds) + 1), ('FSIZE', disk_mb << 20), ('NOFILE', 32),
                           ('NPROC', 16), ('CORE', 0), ('MEMLOCK', 0), ('MSGQUEUE', 0), ('SIGPENDING', 64)):
            resource.setrlimit(getattr(resource, f'RLIMIT_{what}'), (most, most))
        for cap in range(64):
            libc.prctl(24, cap, 0, 0, 0)                    # from the bounding set; EINVAL above the last one
        system('dropping capabilities', CAPSET, struct.pack('<Ii', 0x20080522, 0), bytes(24))
        system('NO_NEW_PRIVS', PRCTL, 38, 1, 0, 0, 0)
        system('no core dumps', PRCTL, 4, 0, 0, 0, 0)       # a handler that dumps are piped to ignores the limit of 0
        landlock(), seccomp()
        keeper.send(b'run')
    except Exception as e:
        keeper.send(f'refused {REFUSED}{e}'.encode())
        os._exit(1)
    os.closerange(3, 1 << 16)
    status, main = 0, type(sys)('__main__')
    sys.modules['__main__'], sys.argv = main, ['']
    sys.stdout.reconfigure(line_buffering=True)             # what was printed before a kill is there
    try:
        exec(compile(code, '<code>', 'exec'), main.__dict__)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if status and not isinstance(e.code, int):
            print(e.code, file=sys.stderr)
    except BaseException as e:
        status = 1
        e.__traceback__ = e.__traceback__.tb_next           # without our own frame
        sys.__excepthook__(type(e), e, e.__traceback__)
    finally:                                                # as the interpreter would end, but for freeing its memory: quicker
        try:
            threading._shutdown(), atexit._run_exitfuncs(), sys.stdout.flush()
        finally:
            os._exit(status & 255)

def landlock():
    """Step 5. Rights: 1 write, 2 read file, 3 list folder, 4 and 5 remove, 7, 8, 12 make folder, file, symlink, 13 move, 14 truncate."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_long(0), 1)
    if version < 1:
        raise OSError('Landlock is missing (Linux 5.13 or later with lsm=...,landlock is needed)')
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attr = struct.pack('<3Q', every, 3 * (version >= 4), 3 * (version >= 6))       # files; TCP; abstract sockets and signals
    ruleset = system('Landlock', LANDLOCK_CREATE, attr, 8 if version < 4 else 16 if version < 6 else 24, 0)
    for path, rights in ((LIBRARY, (2, 3)), ('/tmp', (1, 2, 3, 4, 5, 7, 8, 12, 13, 14))):
        rule = struct.pack('<Qi', sum(1 << r for r in rights) & every, os.open(path, os.O_PATH))
        system('Landlock', LANDLOCK_ADD, ruleset, 1, rule, 0)
    system('Landlock', LANDLOCK_RESTRICT, ruleset, 0)

# what the code may call, numbers of x86_64: files and memory (no memfd), signals, time, threads, polling, pairs of sockets
ALLOWED = [*range(0, 16), *range(17, 29), *range(32, 41), 44, 45, 48, 51, 52, 55, 60, 61, 62, 63, *range(72, 92), *range(95, 101), 102, 104,
           107, 108, 110, 111, 115, 118, 120, 121, 124, 127, 128, 130, 131, 132, 137, 138, 140, 158, 186, *range(191, 197), 200, 201, 202,
           204, 213, *range(217, 220), 221, *range(228, 236), 247, 257, 258, *range(262, 272), 273, 274, 280, 281, 284, 285,
           *range(290, 294), 295, 296, 302, 309, 316, 318, 324, 326, 327, 328, 332, 334, 436, 439, 441, 449]
# ... and with one argument looked at: call -> (which, mask, allowed values)
CHECKED = {16: (1, 0xffffffff, (0x5401, 0x5413, 0x541b, 0x5421, 0x5450, 0x5451)),       # ioctl: is it a terminal, blocking, close-on-exec
           53: (0, 0xffffffff, (1,)),                                                   # socketpair: Unix
           56: (0, 0x7e030000, (0x10000,))}                                             # clone: a thread, in no new namespace

def seccomp():
    """Step 6: a BPF program of (code, jump if true, if false, constant) over (number, architecture, ..., arguments)."""
    LOAD, AND, EQ, GT, RET = 0x20, 0x54, 0x15, 0x25, 0x06
    allow, eperm, enosys, kill = 0x7fff0000, 0x50001, 0x50000 | 38, 0x80000000
    prog = [(LOAD, 0, 0, 4), (EQ, 1, 0, 0xc000003e), (RET, 0, 0, kill), (LOAD, 0, 0, 0)]
    for n in ALLOWED:
        prog += [(EQ, 0, 1, n), (RET, 0, 0, allow)]
    for n, (arg, mask, values) in CHECKED.items():
        prog += [(EQ, 0, 3 + 2 * len(values), n), (LOAD, 0, 0, 16 + 8 * arg), (AND, 0, 0, mask)]
        prog += [x for v in values for x in ((EQ, 0, 1, v), (RET, 0, 0, allow))] + [(RET, 0, 0, eperm)]
    prog += [(GT, 0, 1, 334), (RET, 0, 0, enosys), (RET, 0, 0, eperm)]   # ENOSYS: libc turns to an older call
    code = ctypes.create_string_buffer(b''.join(struct.pack('<HBBI', *i) for i in prog))
    system('seccomp', PRCTL, 22, 2, struct.pack('<HxxxxxxQ', len(prog), ctypes.addressof(code)), 0, 0)

if __name__ == '__main__':
    import atexit, ctypes, gc, resource
    libc = ctypes.CDLL(None, use_errno=True)
    serve()
