"""
Speech made by espeak-ng (GPL-3.0), from the wheel espeakng-loader on PyPI, which is read, not installed: fetched, never committed.

    python data/spoken/voices.py 'how many red?' out.wav en-us+f2
"""
import ctypes
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.media import RATE, BadInput, check, resample, save_wav
from data.source import fetched_wheel

HERE = Path(__file__).resolve().parent
WHEEL, CACHE = 'espeakng-loader==0.2.4', HERE / 'espeak-0.2.4'
ACCENTS = 'en-us en-us-nyc en-gb-scotland en-gb-x-rp en-029'.split()
VOICES = 'm1 m2 m4 m5 m6 m8 f1 f2 f3 f5 Andy Annie Gene Michael adam belinda'.split()
HELD_OUT = 'm3 m7 f4 Andrea'.split()                 # never heard in training, in no accent

def fetched():
    """-> the folder with libespeak-ng and its data, which is fetched once."""
    if not CACHE.exists():
        with fetched_wheel(WHEEL, 'choose another data set') as z, tempfile.TemporaryDirectory(dir=HERE) as tmp:
            z.extractall(tmp)
            (Path(tmp) / 'espeakng_loader').replace(CACHE)
    return CACHE

@lru_cache(None)
def library():
    """-> (libespeak-ng, samples per second), begun but with nothing said yet."""
    root = fetched()
    found = sorted(root.glob('libespeak-ng*'))
    check(found, f'{root}: no libespeak-ng in it; delete it to fetch it again')
    lib = ctypes.CDLL(str(found[0]))
    rate = lib.espeak_Initialize(2, 0, str(root / 'espeak-ng-data').encode(), 0)          # synchronous: sound comes to a callback
    check(rate > 0, f'{root}: espeak-ng does not start ({rate}); delete it to fetch it again')
    return lib, rate

def say_into(pipe, lib, line, voice, speed, pitch):
    """Writes the sound of a line, int16, to a file descriptor; nothing if there is no such voice."""
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples, n, events):
        f.write(ctypes.string_at(samples, 2 * n)) if n > 0 else None
        return 0
    with open(pipe, 'wb') as f:
        lib.espeak_SetSynthCallback(take)
        if lib.espeak_SetVoiceByName(voice.encode()) == 0:
            lib.espeak_SetParameter(1, speed, 0), lib.espeak_SetParameter(3, pitch, 0)
            lib.espeak_Synth(line, len(line), 0, 1, 0, 1, None, None)         # by characters from 0 on, UTF-8
            lib.espeak_Synchronize()

def speak(text, voice, speed=170, pitch=50):
    """
    A sentence -> float32 (n,) at 8 kHz. voice: ACCENT+VARIANT; speed: words per minute; pitch: 0 to 99. In a process of its own, since
    espeak-ng says a thing otherwise after it has said another.
    """
    lib, rate = library()
    heard, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            say_into(pipe, lib, text.encode() + b'\0', voice, int(speed), int(pitch))
        finally:
            os._exit(0)
    os.close(pipe)
    with open(heard, 'rb') as f:
        wave = np.frombuffer(f.read(), np.int16).astype(np.float32) / 2 ** 15
    os.waitpid(child, 0)
    loud = np.flatnonzero(abs(wave) > 1e-3)
    check(len(loud), f'espeak-ng, voice={voice}: no such voice, or nothing to say in {text!r}')
    return resample(wave[loud[0]:loud[-1] + 1], rate, RATE, zeros=8).astype(np.float32)

def someone(rng, held=False):
    """random.Random -> voice, speed, pitch of speak(); held: one that training never hears."""
    return f'{rng.choice(ACCENTS)}+{rng.choice(HELD_OUT if held else VOICES)}', rng.randint(150, 230), rng.randint(30, 70)

if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    try:
        save_wav(sys.argv[2], speak(sys.argv[1], sys.argv[3]))
    except BadInput as e:
        sys.exit(f'voices: {e}')
