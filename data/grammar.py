"""
One request as a sequence that grows: what was said after its prompt, and where the grammar of pictures and sounds stands.

Nothing here knows the model. The engine (sample.py) asks which ids may come next, and follow() says what each of them means: a header's
number, the place of a patch, the end of a sound.
"""
import numpy as np
import torch
from data.codec import to_uint8, unpatchify

TEXT, HEIGHT, WIDTH, PICTURE, SOUND = range(5)          # where grammar stands: <boi> h w [img]*hw <eoi>, <boa> [aud]* <eoa>


class Row:
    """
    A request: what was said after its prompt (ids; w 1: chosen by the model, 0: forced or put in; logp, logq), where grammar stands.
    Options as those of Engine.add; key: of its random numbers.
    """
    def __init__(self, codec, prompt, then=(), *, key=None, index=0, max_new=64, temperature=1.0, top_k=0, top_p=1.0, stop=(), on_end=None,
                 ctx=None):
        self.codec, self.prompt, self.then, self.index, self.left, self.on_end = codec, prompt, then, index, max_new, on_end
        self.ctx, stop = ctx, stop if ctx is None else (codec.sp['/tool'], *stop)
        self.knobs, self.key = (temperature, top_k or codec.n_vocab, top_p if top_p < 1 else 2), key
        self.stop, self.waits, self.result = {codec.sp['eot'], *stop}, False, None
        self.ids, self.w, self.logp, self.logq = [], [], [], []
        self.patches, self.rc, self.frames = [], [], []                # after the prompt; None: made here, in `made`
        self.made, self.pictures, self.sounds = {codec.sp['img']: [], codec.sp['aud']: []}, [], []
        self.mode, self.grid, self.todo, self.begun = TEXT, (0, 0), 0, 0
        self.tail = self.enter(prompt['ids'])

    def enter(self, ids):
        """Grammar goes on over ids (n,) of an encoded document. Only a header or <boa> at its very end can be open; -> its length."""
        edges = np.flatnonzero(np.isin(ids, [self.codec.sp[k] for k in ('boi', 'eoi', 'boa', 'eoa')]))
        tail = len(ids) - int(edges[-1]) if len(edges) and ids[edges[-1]] in (self.codec.sp['boi'], self.codec.sp['boa']) else 0
        for i in ids[len(ids) - tail:].tolist():
            self.follow(i)
        return tail

    def centre(self):
        (h, w), k = self.grid, self.grid[0] * self.grid[1] - self.todo
        return (k // w + .5) / h, (k % w + .5) / w

    def follow(self, i, before=-1):
        """Grammar goes on over id i -> the coordinates (4,) of its position: own row and column, those of the next. -1: none."""
        c, own, new = self.codec, (-1, -1), self.mode
        if i >= c.loc0:                                                # as collate.loc_rc
            own = tuple((k - c.loc0 + .5) / c.n_loc if k >= c.loc0 else -1 for k in (i, before))
        if self.mode == TEXT and i in (c.sp['boi'], c.sp['boa']):
            new, self.grid, self.begun = HEIGHT if i == c.sp['boi'] else SOUND, (0, 0), len(self.frames)
        elif self.mode == HEIGHT:
            new, self.grid = WIDTH, (i - c.loc0, 0)
        elif self.mode == WIDTH:
            new, self.grid = PICTURE, (self.grid[0], i - c.loc0)
            self.todo = self.grid[0] * self.grid[1]
        elif self.mode == PICTURE and i == c.sp['img']:
            own, self.todo = self.centre(), self.todo - 1
        elif self.mode == PICTURE:
            new = TEXT
            self.pictures.append((len(self.patches), *self.grid))
        elif self.mode == SOUND and i == c.sp['eoa']:
            new = TEXT
            self.sounds.append((self.begun, len(self.frames)))
        self.mode = new
        return own + (self.centre() if new == PICTURE and self.todo else (-1, -1))

    def side(self, max_patches):
        """In a header: the largest side that may be said."""
        return max(1, min(self.codec.n_loc - 1, max_patches // max(self.grid[0], 1)))

    def finish(self):
        """
        -> dict(ids and text without the last <eot>; logp, logq, w: of every new position; images [uint8 (H, W, 3)], audio [(n, 128)]: made
        here; doc: prompt and all that followed as an encoded document, with w as its weights: what a trainer learns from).
        """
        sp, p = self.codec.sp, self.prompt
        made = {k: iter(torch.stack(v).cpu().numpy() if v else ()) for k, v in self.made.items()}
        patches = [to_uint8(next(made[sp['img']])) if x is None else x for x in self.patches]
        frames = [next(made[sp['aud']])[:128] if x is None else x for x in self.frames]
        sounds = self.sounds + [(self.begun, len(frames))] * (self.mode == SOUND)            # one that was cut off is kept
        glue = lambda k, new: np.concatenate([p[k], np.array(new, p[k].dtype).reshape(-1, *p[k].shape[1:])])
        doc = dict(ids=glue('ids', self.ids), w=np.r_[np.zeros(len(p['ids']), np.uint8), np.array(self.w, np.uint8)],
                   patches=glue('patches', patches), rc=glue('rc', self.rc), frames=glue('frames', frames))
        ids = self.ids[:-1] if self.ids[-1:] == [sp['eot']] else self.ids
        self.result = dict(ids=ids, text=self.codec.untext([i for i in ids if i not in (sp['img'], sp['aud'])]), doc=doc,
                           logp=self.logp, logq=self.logq, w=self.w, audio=[np.stack(frames[a:b]) for a, b in sounds if b > a],
                           images=[unpatchify(np.stack(patches[k - h * w:k]), h, w) for k, h, w in self.pictures])


def follow_up(codec, doc, segments):
    """An encoded document and the turn after it -> one, ids as they are. A picture that was cut off is left out, a sound ends."""
    r, ids, sp = Row(codec, doc), doc['ids'], codec.sp
    n = len(ids) - (0 if r.mode == SOUND else r.tail)
    e = codec.encode([('ids', [sp['eoa']] * (r.mode == SOUND) + [sp['eot']] * int(ids[n - 1] != sp['eot']), 0), *segments])
    k = len(doc['rc']) - int((ids[n:] == sp['img']).sum())
    cut = dict(ids=n, w=n, patches=k, rc=k, frames=len(doc['frames']))
    return {k: np.concatenate([doc[k][:cut[k]], e[k]]) for k in e}
