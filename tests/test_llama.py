"""
Llama in the layout of Hugging Face: read, trained on, written. The reference is a plain Llama in float64 written here from the paper and
the layout's conventions, on folders that this file writes itself; and transformers, where it is installed.
"""
import json
import math
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.llama import Llama, export_llama, model_keys
from model import ModelConfig, Muse
from data.checkpoint import Checkpoint, checkpoints
from sample import load_model
from test_train import machine, one_line  # noqa: F401: a fixture

BASE = dict(model_type='llama', hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=370,
            rms_norm_eps=1e-5, rope_theta=500.0, hidden_act='silu', tie_word_embeddings=False, max_position_embeddings=64)


def weights(c, seed=0):
    """{name there: float32 tensor}, random, norms too."""
    rng, hd = torch.Generator().manual_seed(seed), c['hidden_size'] // c['num_attention_heads']
    new = lambda *n: torch.randn(n, generator=rng) * (n[-1] ** -0.5 if len(n) > 1 else 0.2) + (len(n) == 1)
    C, kv, ff = c['hidden_size'], c['num_key_value_heads'] * hd, c['intermediate_size']
    w = {'model.embed_tokens.weight': new(c['vocab_size'], C) * 3, 'model.norm.weight': new(C)}
    for i in range(c['num_hidden_layers']):
        for n, shape in {'input_layernorm': (C,), 'post_attention_layernorm': (C,), 'self_attn.q_proj': (C, C),
                         'self_attn.k_proj': (kv, C), 'self_attn.v_proj': (kv, C),
                         'self_attn.o_proj': (C, C), 'mlp.gate_proj': (ff, C), 'mlp.up_proj': (ff, C), 'mlp.down_proj': (C, ff)}.items():
            w[f'model.layers.{i}.{n}.weight'] = new(*shape)
    if not c['tie_word_embeddings']:
        w['lm_head.weight'] = new(c['vocab_size'], C)
    return w


def write(folder, c, w, files=1, dtype='F32'):
    """Our own writing of the format: header, raw bytes; several files with an index."""
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(c))
    names, where = sorted(w), {}
    for k in range(files):
        head, body = {'__metadata__': {'format': 'pt'}}, b''
        for n in names[k::files]:
            raw = (w[n].numpy() if dtype == 'F32' else w[n].half().numpy() if dtype == 'F16'
                   else w[n].bfloat16().view(torch.int16).numpy()).tobytes()
            head[n], where[n] = dict(dtype=dtype, shape=list(w[n].shape),
                                     data_offsets=[len(body), len(body) + len(raw)]), f'model-{k + 1:05d}-of-{files:05d}.safetensors'
            body += raw
        text = json.dumps(head).encode()
        (folder / (where[names[k]] if files > 1 else 'model.safetensors')).write_bytes(np.uint64(len(text)).tobytes() + text + body)
    if files > 1:
        (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))
    return folder


def by_the_book(c, w, ids):
    """ids (T,) -> logits (T, vocab) in float64, position by position and head by head where that is clearer."""
    w = {k: v.double() for k, v in w.items()}
    T, C, nh, nkv = len(ids), c['hidden_size'], c['num_attention_heads'], c['num_key_value_heads']
    hd = C // nh
    norm = lambda x, g: x / torch.sqrt((x * x).mean(-1, keepdim=True) + c['rms_norm_eps']) * g
    angle = torch.arange(T).double()[:, None] * c['rope_theta'] ** (-torch.arange(0, hd, 2).double() / hd)     # (T, hd/2)

    def rotate(x):                                                          # (T, hd): dimension i and i + hd/2 are one complex number
        z = torch.complex(x[:, :hd // 2].contiguous(), x[:, hd // 2:].contiguous()) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), 1)
    x = w['model.embed_tokens.weight'][ids]
    for i in range(c['num_hidden_layers']):
        p = lambda n: w[f'model.layers.{i}.{n}.weight']
        h, heads = norm(x, p('input_layernorm')), []
        q, k, v = (h @ p(f'self_attn.{n}_proj').t() for n in 'qkv')
        for j in range(nh):
            at = slice(j * hd, (j + 1) * hd)
            kv = slice(j // (nh // nkv) * hd, (j // (nh // nkv) + 1) * hd)
            s = rotate(q[:, at]) @ rotate(k[:, kv]).t() / math.sqrt(hd)
            heads.append(s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v[:, kv])
        x = x + torch.cat(heads, 1) @ p('self_attn.o_proj').t()
        h = norm(x, p('post_attention_layernorm'))
        x = x + (F.silu(h @ p('mlp.gate_proj').t()) * (h @ p('mlp.up_proj').t())) @ p('mlp.down_proj').t()
    return norm(x, w['model.norm.weight']) @ w['model.embed_tokens.weight' if c['tie_word_embeddings'] else 'lm_head.weight'].t()


def ours(folder, vocab=0, dtype=torch.float64):
    keys, n = model_keys(folder)
    m = Muse(ModelConfig(**keys, vocab_size=vocab or n, image=False, audio=False)).to(dtype).eval()
    source = Llama(folder, vocab or n)
    state = [(f'param/{n}', p.spec, p) for n, p in m.named_parameters()]
    assert len(list(source.tensors(state))) == len(state)
    Checkpoint.fill(source, source.tensors(state))
    return m


@torch.no_grad()
def logits(m, ids):
    b = dict(ids=ids[None], pos=torch.arange(len(ids))[None], doc=torch.zeros(1, len(ids), dtype=torch.int32))
    return F.linear(m.norm(blocks(m, m.embed(b), m.context(b, m.wte.dtype)))[0], m.wte if m.cfg.tie else m.head)


def blocks(m, x, ctx):
    for block in m.blocks.values():
        x = block(x, ctx)
    return x


IDS = torch.randint(0, 370, (23,), generator=torch.Generator().manual_seed(5))
KINDS = dict(gqa={}, tied=dict(tie_word_embeddings=True), mha=dict(num_key_value_heads=4), mqa=dict(num_key_value_heads=1),
             new=dict(rope_theta=None, rope_parameters=dict(rope_type='default', rope_theta=300.0)))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('files', [1, 3])
def test_logits_are_those_of_a_plain_llama(tmp_path, kind, files):
    c = {k: v for k, v in {**BASE, **KINDS[kind]}.items() if v is not None}
    w = weights(c)
    folder = write(tmp_path / 'hf', c, w, files)
    want = by_the_book({**c, 'rope_theta': 300.0 if kind == 'new' else 500.0}, w, IDS)
    assert (logits(ours(folder), IDS) - want).abs().max() < 1e-5             # rotary angles are float32
    assert (logits(ours(folder, dtype=torch.float32), IDS) - want).abs().max() < 1e-4
    m = ours(folder)
    export_llama(m.cfg.__dict__, lambda n: dict(m.named_parameters())[n].data, tmp_path / 'back')
    again = Llama(tmp_path / 'back', 370)
    assert again.keys == model_keys(folder)[0] and all(torch.equal(again.read(n), x) for n,
                                                       x in w.items()) and again.where.keys() == w.keys()


@pytest.mark.parametrize('dtype', ['F16', 'BF16'])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    w = weights(BASE)
    source = Llama(write(tmp_path / 'hf', BASE, w, 2, dtype), 370)
    for n, x in w.items():
        assert torch.equal(source.read(n), x.half() if dtype == 'F16' else x.bfloat16())


def test_a_larger_vocabulary_keeps_the_logits_of_the_old_one(tmp_path):
    w = weights(BASE)
    got = logits(ours(write(tmp_path / 'hf', BASE, w), vocab=380), IDS)
    want = by_the_book(BASE, w, IDS)
    assert (got[:, :370] - want).abs().max() < 1e-5
    assert (got[:, 370:] - want.mean(1, keepdim=True)).abs().max() < 1e-5    # new rows are the mean of the old


def test_what_is_no_such_llama_is_refused(tmp_path):
    w = weights(BASE)
    for i, (change, says) in enumerate([(dict(model_type='mistral'), 'mistral'), (dict(rope_scaling=dict(rope_type='llama3')), 'llama3'),
                                        (dict(hidden_act='gelu'), 'gelu'),
                                        (dict(attention_bias=True), 'bias'), (dict(head_dim=16), 'head_dim=16'),
                                        (dict(hidden_size=None), 'config.json')]):
        with pytest.raises(ValueError, match=says):
            Llama(write(tmp_path / f'{i}', {**BASE, **change}, w), 370)
    folder = write(tmp_path / 'cut', BASE, w)
    file = folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-64])
    source = Llama(folder, 370)
    with pytest.raises(ValueError, match='damaged'):
        for n in source.ours:
            source.full(f'param/{n}')
    file.write_bytes(b'\xff' * 4)
    with pytest.raises(ValueError, match='safetensors'):
        Llama(folder, 370)
    missing = {n: x for n, x in w.items() if '3.mlp.up' not in n}
    with pytest.raises(ValueError, match='layers.3.mlp.up_proj'):
        source = Llama(write(tmp_path / 'missing', BASE, missing), 370)
        source.full('param/blocks.3.mlp.up')
    with pytest.raises(ValueError, match='config.json'):
        model_keys(tmp_path / 'nothing')


# ---------------------------------------------------------------- train.py

KEYS = ('--n_layer=4 --n_head=4 --n_kv_head=2 --n_embd=32 --ff=48 --act=swiglu --qk_norm=false --softcap=0 --rope_base=500 '
        '--token_shift=false --norm_eps=1e-5 --vocab_size=370').split()
RUN = ('--dataset=shakespeare --tokenizer=bytes --image=false --audio=false --block_size=32 --tokens_per_step=128 --micro_rows=2 '
       '--max_steps=3 --log_every=1 --eval_docs=0 --skills=0 --dtype=float64 --device=cpu --muon=false --z_loss=0').split()


def train(machine, name, folder, *flags, world=1, keys=KEYS):  # noqa: F811
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = lambda r: {'RANK': str(r), 'WORLD_SIZE': str(world), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)} if world > 1 else {}
    out = machine.path / name
    jobs = [machine.start('train.py', *RUN, *keys, f'--input={machine.text}', f'--init_from=hf:{folder}', f'--out_dir={out}', *flags,
                          env=env(r)) for r in range(world)]
    return [machine.wait(j) for j in jobs], out


def losses(out):
    rows = [json.loads(line) for line in open(out / 'metrics.jsonl')]
    return ([r['loss'] for r in rows if 'loss' in r], [r['val']['shakespeare']['txt'] for r in rows if 'val' in r],
            [r['cost']['flops'] for r in rows])


@pytest.mark.parametrize('tie', [False, True])
def test_training_goes_on_in_any_layout(machine, tmp_path, tie):  # noqa: F811
    c = {**BASE, 'tie_word_embeddings': tie}
    w = weights(c)
    folder = write(tmp_path / 'hf', c, w, 3)
    more = ['--tie=true'] if tie else []
    # evaluated as it was read
    [r], still = train(machine, f'still{tie}', folder, '--lr=1e-30', '--weight_decay=0', '--max_steps=1', *more)
    assert r.code == 0, r.err
    text = machine.text.read_text()
    val = torch.tensor(list(text[int(len(text) * 0.9):].encode()))
    nll = torch.cat([F.cross_entropy(by_the_book(c, w, val[i:i + 33][:-1]), val[i:i + 33][1:], reduction='none')
                     for i in range(0, len(val) - 1, 32)])
    assert losses(still)[1][0] == pytest.approx(nll.mean().item(), rel=1e-6)
    r = machine.run('optim_zero.py', 'export-hf', checkpoints(still)[0], tmp_path / 'back')
    assert r.code == 0, r.err
    back = Llama(tmp_path / 'back', 370)
    assert back.where.keys() == w.keys() and all(torch.equal(back.read(n), x) for n, x in w.items())
    [r], one = train(machine, f'one{tie}', folder, *more)
    assert r.code == 0, r.err
    many, four = train(machine, f'four{tie}', folder, '--tp=2', '--pp=2', *more, world=4)
    assert all(r.code == 0 for r in many), many[0].err
    a, b = losses(one), losses(four)
    assert a[0] == pytest.approx(b[0], rel=1e-10) and a[1] == pytest.approx(b[1], rel=1e-10) and a[0][2] != a[0][0]
    assert a[2] == pytest.approx(b[2]) and a[2][2] == pytest.approx(3 * a[2][0])   # operations are those of the whole world, and add up
    # and the export of that layout is what one process would compute
    model, codec, _ = load_model(four)
    r = machine.run('optim_zero.py', 'export-hf', checkpoints(four)[0], tmp_path / 'four')
    assert r.code == 0, r.err
    assert (logits(ours(tmp_path / 'four'), IDS) - logits(model.double(), IDS)).abs().max() < 1e-5
    # the same command goes on from the checkpoint, not from the folder
    [r], _ = train(machine, f'one{tie}', folder, '--max_steps=4', *more)
    assert r.code == 0 and 'going on from' in r.out, r.err


def test_keys_that_do_not_fit_are_named(machine, tmp_path):  # noqa: F811
    folder = write(tmp_path / 'hf', BASE, weights(BASE))
    [r], _ = train(machine, 'wrong', folder, keys=['--n_layer=4', '--n_embd=32'])
    one_line(r, *[k for k in KEYS if k.split('=')[0] not in ('--n_layer', '--n_head', '--n_embd', '--softcap', '--norm_eps',
                                                             '--rope_base')],
             '--softcap=0.0', '--norm_eps=1e-05', '--rope_base=500.0')
    [r], _ = train(machine, 'wrong', folder, '--image=true')              # patches would turn two thirds of its rotary pairs
    one_line(r, '--rope_2d=false')
    with pytest.raises(ValueError, match='rope_2d=True'):
        export_llama(vars(ModelConfig(act='swiglu', qk_norm=False)), None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    [r], _ = train(machine, 'none', tmp_path / 'nowhere')
    one_line(r, 'nowhere', 'config.json')


# ---------------------------------------------------------------- transformers itself

@pytest.mark.parametrize('tie', [False, True])
def test_transformers_agrees(tmp_path, tie):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed: it is no requirement')
    c = {k: v for k, v in {**BASE, 'tie_word_embeddings': tie}.items() if k != 'model_type'}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c)).float().eval()
    theirs.save_pretrained(tmp_path / 'hf', max_shard_size='40KB')
    m = ours(tmp_path / 'hf', dtype=torch.float32)
    with torch.no_grad():
        want = theirs(IDS[None]).logits[0]
    assert (logits(m, IDS) - want).abs().max() < 1e-4
    export_llama(m.cfg.__dict__, lambda n: dict(m.named_parameters())[n].data, tmp_path / 'back')
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'back').float().eval()
    with torch.no_grad():
        assert (again(IDS[None]).logits[0] - want).abs().max() < 1e-6
