"""
Pictures and sound <-> arrays: files to uint8 pixels and patches, WAVs to log-mel frames, and back.

All is numpy on the CPU, but for the Fourier transforms (torch). What cannot be used raises BadInput: one clear line.
"""
import io, struct, warnings
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps

FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')       # of Pillow's readers; EPS would start a program
PATCH, D = 8, 192                                     # px; 8*8*3 numbers per image position
RATE, HOP, WIN, N_FFT = 8000, 160, 400, 512           # Hz; samples: a spectrum each 20 ms, of 50 ms
N_MELS, STACK, FRAME_D = 64, 2, 128                   # bands; spectra and numbers per audio position (40 ms)
FLOOR, MEAN, STD = 1e-3, -3.2, 1.95                   # frames are (log(band + FLOOR) - MEAN) / STD: unit size on speech

class BadInput(ValueError):
    """A file or value that cannot be used: one line that names it and the trouble."""

def check(ok, message):
    if not ok:
        raise BadInput(message)

# ---- images
def patchify(a):
    """uint8 (8h, 8w, 3) -> uint8 (h*w, 192): patches in raster order, in a patch row, column, channel."""
    check(isinstance(a, np.ndarray) and a.dtype == np.uint8 and a.ndim == 3 and a.size and a.shape[2] == 3 and
          a.shape[0] % PATCH == a.shape[1] % PATCH == 0,
          f'image {getattr(a, "dtype", type(a))} {getattr(a, "shape", "")}: uint8 (8h, 8w, 3) is needed')
    return a.reshape(len(a) // PATCH, PATCH, -1, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(-1, D)

def unpatchify(p, h, w):
    """(h*w, 192) of any type -> (8h, 8w, 3), the exact inverse."""
    return p.reshape(h, w, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(h * PATCH, w * PATCH, 3)

def to_float(u8):
    """uint8 -> float32 in [-1, 1]."""
    return np.asarray(u8, np.float32) / 127.5 - 1

def to_uint8(x):
    """Floats in [-1, 1] (clipped, nan: 0) -> uint8, the exact inverse of to_float."""
    return np.clip(np.rint((np.nan_to_num(np.asarray(x, np.float32)) + 1) * 127.5), 0, 255).astype(np.uint8)

def read(src):
    """Path or bytes -> (bytes, name for messages)."""
    if isinstance(src, (bytes, bytearray)):
        data, name = bytes(src), f'<{len(src)} bytes>'
    else:
        name = repr(str(src))
        try:
            check(Path(src).is_file(), f'{name}: no such file')
            size = Path(src).stat().st_size
            check(size < 1 << 30, f'{name}: over 1 GiB is too long')
            data = Path(src).read_bytes() if size else b''          # files of /proc without a size may block, or have no end
        except (OSError, TypeError) as e:
            raise BadInput(f'{name}: cannot be read ({type(e).__name__})') from None
    check(data, f'{name}: empty')
    return data, name

def load_image(src, max_patches=64, max_side=63):
    """Path, bytes or PIL image -> uint8 (8h, 8w, 3) with h*w <= max_patches and h, w <= max_side, its shape kept
    as well as they allow, no larger than it was but for rounding; upright by EXIF, laid on white, first frame."""
    data, name = (None, 'image') if isinstance(src, Image.Image) else read(src)
    fresh = lambda: Image.open(io.BytesIO(data), formats=FORMATS) if data else src
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')           # of bombs: to us the limit is one
            im = fresh()
            check(0 < im.width * im.height <= (Image.MAX_IMAGE_PIXELS or 1e18),
                  f'{name}: {im.width}x{im.height} pixels: none, or too many (decompression bomb?)')
            if data:
                im.verify()                           # checksums; Pillow wants the file opened again after it
            im = ImageOps.exif_transpose(fresh())
            if im.mode[0] in 'IF':                    # 16 bits and floats: Pillow would clip them, not scale
                a = np.array(im, np.float32)          # in place from here on: it may be large
                np.nan_to_num(a, copy=False)
                a *= np.float32(1 / 257 if im.mode[0] == 'I' else 255 if a.max() <= 1 else 1)
                im = Image.fromarray(np.clip(np.rint(a, out=a), 0, 255, out=a).astype(np.uint8))
            im = im.convert('RGBA' if im.has_transparency_data else 'RGB')
            # the grid: for each h two widths about the right one; the nearest shape wins, then the nearest area
            aspect, area = im.width / im.height, min(im.width * im.height / PATCH ** 2, max_patches)
            shapes = [(h, min(max(int(h * aspect) + i, 1), max_patches // h, max_side))
                      for h in range(1, min(max_patches, max_side) + 1) for i in (0, 1)]
            h, w = min(shapes, key=lambda s: abs(np.log(s[1] / s[0] / aspect)) + abs(np.log(s[0] * s[1] / area)) / 2)
            if im.size != (w * PATCH, h * PATCH):
                im = im.resize((w * PATCH, h * PATCH), Image.Resampling.BICUBIC)
            im = im.convert('RGBA')
            return np.array(Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB'))
    except BadInput:
        raise
    except Image.DecompressionBombError:              # of those twice as large as what it warns of
        raise BadInput(f'{name}: too many pixels (decompression bomb?): make it smaller') from None
    except Exception as e:                            # Pillow's decoders raise nearly anything on damaged files
        raise BadInput(f'{name}: damaged, or no image of a kind that is read here ({type(e).__name__})') from None

def mark(a, points, boxes):
    """uint8 (H, W, 3), points [(x, y)] and boxes [(x0, y0, x1, y1)] in fractions -> a copy with them drawn on, small ones enlarged; None if
    there is nothing to draw."""
    k = max(1, 512 // max(a.shape[:2]))
    im = Image.fromarray(a.repeat(k, 0).repeat(k, 1))
    draw, (W, H) = ImageDraw.Draw(im), im.size
    for x, y in points:
        for r, colour in ((8, 'white'), (6, 'red')):
            draw.ellipse((x * W - r, y * H - r, x * W + r, y * H + r), fill=colour)
    for x0, y0, x1, y1 in boxes:
        x0, x1, y0, y1 = *sorted((x0 * W, x1 * W)), *sorted((y0 * H, y1 * H))
        for width, colour in ((5, 'white'), (3, 'red')):
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    return np.array(im) if points or boxes else None

# ---- audio
def load_audio(src, max_seconds=600):
    """Path or bytes of a WAV (PCM of 8 to 32 bits, or float; any rate and channels) -> float32 (n,) at 8 kHz, mono."""
    data, name = read(src)
    check(data[:4] == b'RIFF' and data[8:12] == b'WAVE', f'{name}: not a WAV file (ffmpeg -i FILE out.wav makes one)')
    chunks, at, left = {}, 12, 1000                   # chunks at most: zeros, too, read as chunks
    while at + 8 <= len(data) and b'data' not in chunks and left:
        left -= 1
        kind, size = struct.unpack_from('<4sI', data, at)
        chunks[kind] = data[at + 8:at + 8 + size]
        check(len(chunks[kind]) == size, f'{name}: truncated: {size} bytes announced, {len(chunks[kind])} there')
        at += 8 + size + size % 2
    fmt, pcm = chunks.get(b'fmt ', b''), chunks.get(b'data')
    check(len(fmt) >= 16 and pcm is not None, f'{name}: damaged: no format or no data in it')
    tag, channels, rate, _, align, bits = struct.unpack_from('<HHIIHH', fmt)
    if tag == 0xFFFE and len(fmt) >= 26:              # extensible: the real tag comes later
        tag, = struct.unpack_from('<H', fmt, 24)
    width = align // max(channels, 1)                 # bytes of a sample
    check((tag, width) in ((1, 1), (1, 2), (1, 3), (1, 4), (3, 4), (3, 8)) and width * channels == align and
          (-(-bits // 8) == width or (width, bits) == (4, 24)),
          f'{name}: format {tag} of {channels} x {bits} bits in {align} bytes is not supported (PCM or float WAV is)')
    check(1 <= rate <= 768000, f'{name}: a rate of {rate} Hz')
    n = len(pcm) // align
    check(0 < n <= rate * max_seconds, f'{name}: {n} samples at {rate} Hz: none, or longer than {max_seconds} s')
    check(n * channels <= 1 << 26, f'{name}: {n} samples of {channels} channels are too many: make it mono, or its rate lower')
    raw = np.frombuffer(pcm, np.uint8, n * align).reshape(-1, width)
    if tag == 3:
        check(np.isfinite(raw.view(f'<f{width}')).all(), f'{name}: samples that are not finite')
        x = np.clip(raw.view(f'<f{width}'), -1, 1)
    else:                                             # 8 bits are unsigned; others: left-aligned in 32, low byte first
        x = raw / 128 - 1 if width == 1 else np.pad(raw, ((0, 0), (4 - width, 0))).view('<i4') / 2 ** 31
    return resample(x.reshape(n, channels).mean(1), rate).astype(np.float32)

def resample(x, rate, to=RATE, zeros=32, roll=.94, beta=9.):
    """(n,) at rate Hz -> float64 (ceil(n * to / rate),) at `to` Hz: a sinc cut at roll * the lower Nyquist frequency,
    under a Kaiser window of `zeros` zero crossings a side. Its weights repeat every to/gcd outputs: a row for each."""
    if rate > 48000:                                  # 191999 Hz is taken for 192000: its table would be endless
        rate = round(rate, -2)
    up, down = to // np.gcd(rate, to), rate // np.gcd(rate, to)
    if up == down:
        return x
    n_out, cut = -(-len(x) * to // rate), roll * min(1, to / rate)
    half = int(np.ceil(zeros / cut))
    phase = np.arange(min(up, n_out)) * down % up / up          # of output j: j * rate / to = a whole sample + phase
    t = np.arange(-half, half + 1) - phase[:, None]             # (phases, taps), in input samples
    table = cut * np.sinc(cut * t) * np.i0(beta * np.sqrt(np.clip(1 - (t / (half + 1)) ** 2, 0, 1))) / np.i0(beta)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, half), 2 * half + 1)     # (n, taps)
    out = np.empty(n_out)
    for j in np.array_split(np.arange(n_out), n_out * table.shape[1] // 4000000 + 1):     # bounded memory
        out[j] = np.einsum('nk,nk->n', windows[j * down // up], table[j % up])
    return out

# bands: triangles of sum 1, their corners at equal steps of mel = log(1 + Hz / 700) from 0 to 4000 Hz
corner = 700 * np.expm1(np.linspace(0, np.log1p(RATE / 2 / 700), N_MELS + 2))[:, None]        # (66, 1) Hz
freq = np.linspace(0, RATE / 2, N_FFT // 2 + 1)                                               # (257,) Hz
rise, fall = (freq - corner[:-2]) / np.diff(corner, axis=0)[:-1], (corner[2:] - freq) / np.diff(corner, axis=0)[1:]
MEL = np.minimum(rise, fall).clip(0)
MEL = torch.tensor(MEL / MEL.sum(1, keepdims=True), dtype=torch.float32)                      # (64, 257)
STFT = dict(n_fft=N_FFT, hop_length=HOP, win_length=WIN, window=torch.hann_window(WIN, dtype=torch.float32))

def spectra(x):
    """(n,) -> complex (257, n / 160 + 2) centred at -80, 80, 240, ...: the outer two only help the inverse."""
    return torch.stft(F.pad(x, (HOP // 2, HOP // 2)), **STFT, pad_mode='constant', return_complex=True)

def as_frames(v):
    v = np.asarray(v, np.float32)
    check(v.ndim == 2 and len(v) and v.shape[1] == FRAME_D and np.isfinite(v).all(),
          f'audio frames of shape {v.shape}: finite (n >= 1, {FRAME_D}) are needed')
    return v

def mel(wave):
    """(n,) at 8 kHz -> float32 (ceil(n / 320), 128): two log-mel spectra a row, zero mean and unit std on speech."""
    x = torch.from_numpy(np.array(wave, np.float32))
    check(x.ndim == 1 and len(x) and x.isfinite().all(), f'wave of shape {tuple(x.shape)}: finite (n >= 1,) is needed')
    bands = MEL @ spectra(F.pad(x, (0, -len(x) % (HOP * STACK))))[:, 1:-1].abs()              # (64, 2 * rows)
    return ((bands.add(FLOOR).log().T.reshape(-1, FRAME_D) - MEAN) / STD).numpy()

def unmel(frames, n_iter=60, seed=0):
    """(n, 128) -> float32 (n * 320,) at 8 kHz: magnitudes by non-negative least squares, phases by Griffin-Lim."""
    f = torch.from_numpy(as_frames(frames)).reshape(-1, N_MELS)
    bands = ((f * STD + MEAN).clamp(max=6).exp() - FLOOR).clamp(min=0).T                      # (64, 2n)
    mag = MEL.T @ bands + 1e-9
    for _ in range(100):                              # multiplicative steps keep it positive
        mag = mag * (MEL.T @ bands) / (MEL.T @ (MEL @ mag) + 1e-9)
    mag = F.pad(mag, (1, 1))                          # the outer two: silence
    angle = torch.rand(mag.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * 2 * torch.pi
    spec, last = torch.polar(mag, angle), None
    for i in range(n_iter + 1):
        wave = torch.istft(spec, **STFT, length=HOP * (len(f) + 1))[HOP // 2:-(HOP // 2)]
        s = spectra(wave)
        fast = s if last is None else s + .99 * (s - last)      # momentum: fast Griffin-Lim
        spec, last = mag * fast / (fast.abs() + 1e-9), s
    return wave.numpy()

def save_wav(path, wave):
    """(n,) in [-1, 1] (clipped) at 8 kHz -> a WAV of 16 bits, mono."""
    pcm = np.rint(np.clip(np.nan_to_num(np.asarray(wave, np.float64)), -1, 1) * 32767).astype('<i2').tobytes()
    head = struct.pack('<4sI8sIHHIIHH', b'RIFF', 36 + len(pcm), b'WAVEfmt ', 16, 1, 1, RATE, RATE * 2, 2, 16)
    Path(path).write_bytes(head + struct.pack('<4sI', b'data', len(pcm)) + pcm)
