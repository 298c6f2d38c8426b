"""
Files that a model may read and write: a workspace to change, documents to search, both folders from which no path leads outside.

folder() opens a path step by step, each relative to the descriptor of the one before and never through a link, so nothing can be exchanged
between a look and the use. Files are UTF-8 text. data/tools.py calls the tools here, and says what ctx is; what is wrong raises BadInput.
"""
import errno, math, os, re, stat, threading
from collections import Counter
from contextlib import contextmanager, suppress
from data.media import BadInput, check

MAX_FILE, MAX_FOLDER, MAX_FILES = 1 << 20, 64 << 20, 1000     # bytes of a file and of a folder, files in a folder
PAGE = 7_000                                                  # characters that come back at once

@contextmanager
def folder(root, path, make=False):
    """-> (descriptor of the folder beneath root that holds path, its last name). make: missing folders are made. OSError within the block
    becomes BadInput, too."""
    parts = [p for p in path.split('/') if p not in ('', '.')]
    check(parts and path[0] != '/' and '..' not in parts and len(parts) <= 8, f'path {path[:80]!r}: relative, without .., at most 8 deep')
    fd = None
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for p in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(p, dir_fd=fd)
            fd, up = os.open(p, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), fd
            os.close(up)
        yield fd, parts[-1]
    except OSError as e:
        raise BadInput(f'{path[:80]!r}: {"links are not followed" if e.errno == errno.ELOOP else e.strerror}') from None
    finally:
        if fd is not None:
            os.close(fd)

def read_text(root, path, errors='replace'):
    with folder(root, path) as (fd, name):
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd), 'rb') as f:          # a FIFO does not block
            st = os.fstat(f.fileno())
            check(stat.S_ISREG(st.st_mode) and st.st_size <= MAX_FILE, f'{path[:80]!r}: no file, or over {MAX_FILE} bytes')
            return f.read(MAX_FILE).decode('utf-8', errors)

def write_text(root, path, text):
    """Whole or not at all: a new file takes the place of what had the name (a link is replaced, never followed)."""
    data = text.encode('utf-8', 'replace')
    check(len(data) <= MAX_FILE, f'{path[:80]!r}: {len(data)} bytes are more than {MAX_FILE}')
    with folder(root, path, make=True) as (fd, name):
        tmp, mode = f'.{os.getpid()}-{threading.get_ident()}.tmp', 0o644
        with suppress(FileNotFoundError):
            old = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            mode = old & 0o777 if stat.S_ISREG(old) else mode           # what was private stays so
        try:
            with open(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=fd), 'wb') as f:
                f.write(data)
            os.replace(tmp, name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            os.unlink(tmp, dir_fd=fd)
            raise

def files(root):
    """{path: bytes} of the first MAX_FILES files beneath root; hidden ones and links are left out."""
    found = {}
    for top, dirs, names in os.walk(root):                    # which follows no links
        dirs[:] = sorted(d for d in dirs if d[0] != '.')
        for p in (os.path.join(top, n) for n in sorted(names) if n[0] != '.'):
            st = os.lstat(p)
            if stat.S_ISREG(st.st_mode) and len(found) < MAX_FILES:
                found[os.path.relpath(p, root)] = st.st_size
    return found

def lines(text):
    return text.removesuffix('\n').split('\n') if text else []

def page(text, line):
    """Numbered lines from `line` on, as many as come back at once."""
    have, out, room = lines(text), [], PAGE
    check(1 <= line <= max(len(have), 1), f'line {line}: there are {len(have)}')
    for i, s in enumerate(have[line - 1:], line):
        out.append(f'{i}  {s[:2000]}')
        room -= len(out[-1]) + 1
        if room < 0 and i < len(have):
            return '\n'.join(out) + f'\n[lines {line} to {i} of {len(have)}]'
    return '\n'.join(out) or '(empty)'

def need(ctx, key):
    check(ctx.get(key) is not None, f'there is no {key} here')
    return ctx[key]

# ---------------------------------------------------------------- the workspace

def save(ctx, path, text):
    have = files(need(ctx, 'workspace'))
    check(len(have) < MAX_FILES and sum(have.values()) + len(text) <= MAX_FOLDER, f'the workspace is full: {len(have)} files')
    write_text(ctx['workspace'], path, text)
    return f'{path}: {len(lines(text))} lines written'

def view(ctx, path: str = '', line: int = 1):
    """Lines of a file of the workspace from `line` on; without a path, the list of its files."""
    root = need(ctx, 'workspace')
    return page(read_text(root, path) if path.strip('./') else '\n'.join(f'{k}  {v} bytes' for k, v in files(root).items()), line)

def insert(ctx, path: str, line: int, text: str):
    """Put text after a line of a file of the workspace; line 0: before the first, or into a new file."""
    try:
        have = lines(read_text(need(ctx, 'workspace'), path, 'strict'))
    except BadInput as e:
        if line or os.strerror(errno.ENOENT) not in str(e):
            raise
        have = []
    check(0 <= line <= len(have), f'line {line}: there are {len(have)}')
    return save(ctx, path, '\n'.join([*have[:line], *lines(text), *have[line:], '']))

def replace(ctx, path: str, old: str, new: str):
    """Replace a piece of a file of the workspace, which must occur once in it."""
    text = read_text(need(ctx, 'workspace'), path, 'strict')
    n = text.count(old) if old else 0
    check(n == 1, f'{path[:80]!r}: the old piece occurs {n} times in it, not once')
    return save(ctx, path, text.replace(old, new))

def artifact(ctx, name: str, html: str):
    """Write an HTML page, NAME.html, into the workspace."""
    check(re.fullmatch(r'[\w-]{1,60}', name), f'name {name[:40]!r}: letters, digits, - and _')
    # what its scripts do stays within the page: nothing is fetched, nothing sent
    return save(ctx, f'{name}.html', '<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="'
                f"default-src 'unsafe-inline' data:; form-action 'none'\">\n{html}\n")

# ---------------------------------------------------------------- documents

def words(text):
    return re.findall(r'\w+', text.lower())

def search(ctx, query: str, n: int = 5):
    """The documents that fit a query best, each with its first line that has a word of it."""
    root = need(ctx, 'documents')
    if '_index' not in ctx:                                   # {path: Counter of its words}
        ctx['_index'], left = {}, MAX_FOLDER
        for p, size in files(root).items():
            if size <= min(MAX_FILE, left):
                ctx['_index'][p], left = Counter(words(read_text(root, p))), left - size
    docs, wanted, score = ctx['_index'], sorted(set(words(query)))[:100], Counter()
    length = {p: c.total() for p, c in docs.items()}
    mean = sum(length.values()) / max(len(docs), 1)
    for w in wanted:                                          # BM25 (Robertson and Zaragoza 2009), k1 = 1.2, b = .75
        have = [p for p, c in docs.items() if w in c]
        for p in have:
            tf, idf = docs[p][w], math.log(1 + (len(docs) - len(have) + .5) / (len(have) + .5))
            score[p] += idf * tf * 2.2 / (tf + 1.2 * (.25 + .75 * length[p] / mean))
    line = lambda p: next((s.strip()[:160] for s in lines(read_text(root, p)) if set(words(s)) & set(wanted)), '')
    return '\n'.join(f'{p}: {line(p)}' for p, _ in score.most_common(min(max(n, 1), 20))) or 'no document has any of these words'

def open_(ctx, path: str, line: int = 1):
    """Lines of a document from `line` on."""
    return page(read_text(need(ctx, 'documents'), path), line)

def find(ctx, path: str, text: str):
    """The lines of a document that contain a text, in upper or lower case."""
    hits = [f'{i}  {s[:300]}' for i, s in enumerate(lines(read_text(need(ctx, 'documents'), path)), 1) if text.lower() in s.lower()]
    return '\n'.join(hits[:20]) + f'\n[{len(hits) - 20} more]' * (len(hits) > 20) or 'not in it'
