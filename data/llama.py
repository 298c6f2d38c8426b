"""
Llama in the layout of Hugging Face: a folder with config.json and *.safetensors, read and written without their libraries.

    python train.py --init_from=hf:FOLDER ...               trains on from such weights, in any layout; it says which keys fit them
    python optim_zero.py export-hf out/step_00000100 FOLDER writes a checkpoint of a model with these keys that way

safetensors: 8 bytes of length, a JSON header {name: {dtype, shape, data_offsets}}, the raw tensors; large models are split into files
that model.safetensors.index.json lists. Nothing is read before it is asked for, so a rank reads what its stage holds. Matrices have the
same orientation here and there; k and v, gate and up lie in one matrix here; rotary positions pair neighbours here, i and i + hd/2 there:
rows of q and k change their places.
The tokenizer is not read: ids are whatever --tokenizer says. What the folder has no weights for (special tokens behind its vocabulary,
patches, frames) starts afresh.
"""
import json, math, os
from pathlib import Path
import numpy as np
import torch

DTYPES = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
# a Llama among models of ours
FIXED = dict(act='swiglu', qk_norm=False, softcap=0.0, n_expert=0, ngram=0, smear=0, value_embed=False, token_shift=False)

def names(layer=None):
    """Our name -> the names there whose rows follow one another in it, of the layer or of what is outside the layers."""
    if layer is None:
        return {'wte': ['model.embed_tokens'], 'norm.gain': ['model.norm'], 'head': ['lm_head']}
    inside = {'norm1.gain': ['input_layernorm'], 'norm2.gain': ['post_attention_layernorm'],
              'attn.q': ['self_attn.q_proj'], 'attn.kv': ['self_attn.k_proj', 'self_attn.v_proj'], 'attn.out': ['self_attn.o_proj'],
              'mlp.up': ['mlp.gate_proj', 'mlp.up_proj'], 'mlp.down': ['mlp.down_proj']}
    return {f'blocks.{layer}.{k}': [f'model.layers.{layer}.{n}' for n in v] for k, v in inside.items()}

def model_keys(path):
    """
    Folder -> {key of train.py: value that the weights demand}, size of their vocabulary. ValueError, one line, for what is no such Llama.
    """
    file = Path(path) / 'config.json'
    try:
        c = json.loads(file.read_text())
        rope = c.get('rope_parameters') or c.get('rope_scaling') or {}
        for ok, say in ((c.get('model_type') == 'llama', f"model_type={c.get('model_type')}: only llama is read"),
                        (rope.get('rope_type', rope.get('type', 'default')) == 'default',
                         f'scaled rotary positions ({rope}) are not supported'),
                        (c.get('hidden_act', 'silu') == 'silu', f"hidden_act={c.get('hidden_act')}: only silu is supported"),
                        (not c.get('attention_bias') and not c.get('mlp_bias'), 'attention_bias or mlp_bias: biases are not supported'),
                        ((c.get('head_dim') or c['hidden_size'] // c['num_attention_heads']) * c['num_attention_heads'] == c['hidden_size'],
                         f"head_dim={c.get('head_dim')} times num_attention_heads is not hidden_size={c['hidden_size']}")):
            if not ok:
                raise ValueError(say)
        return dict(n_layer=c['num_hidden_layers'], n_head=c['num_attention_heads'], n_embd=c['hidden_size'], ff=c['intermediate_size'],
                    n_kv_head=c.get('num_key_value_heads') or c['num_attention_heads'],
                    rope_base=float(rope.get('rope_theta') or c.get('rope_theta', 10000.0)),
                    norm_eps=float(c.get('rms_norm_eps', 1e-6)), tie=bool(c.get('tie_word_embeddings')),
                    rope_2d=False, **FIXED), c['vocab_size']
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(f'{file}: {f"no {e}" if isinstance(e, KeyError) else " ".join(str(e).split())}; '
                         'give the folder of a Llama (LlamaForCausalLM) in safetensors') from None

def pairs(x, hd):
    """x (n hd, C), rows of q or k as there -> as here: of each head row i, then row i + hd/2."""
    return x.view(-1, 2, hd // 2, x.shape[-1]).transpose(1, 2).reshape(x.shape)

def halves(x, hd):
    """The inverse of pairs()."""
    return x.view(-1, hd // 2, 2, x.shape[-1]).transpose(1, 2).reshape(x.shape)

class Llama:
    """
    An opened folder, as a source for Checkpoint.fill: full(name) -> the tensor that our name means, in the type of the file. vocab: rows of
    our embedding.
    """
    def __init__(self, path, vocab):
        self.path, self.where, self.vocab = Path(path), {}, vocab
        self.keys, n_vocab = model_keys(path)
        if n_vocab > vocab:
            self.keys['vocab_size'] = n_vocab
        try:
            index = self.path / 'model.safetensors.index.json'
            single = [f.name for f in self.path.glob('*.safetensors')]
            for f in sorted(set(json.loads(index.read_text())['weight_map'].values()) if index.exists() else single):
                raw = np.memmap(self.path / f, np.uint8, 'r')
                n = 8 + int.from_bytes(raw[:8].tobytes(), 'little')
                head = json.loads(raw[8:n].tobytes())
                self.where.update({k: (raw, n, f, v) for k, v in head.items() if k != '__metadata__'})
        except (OSError, ValueError, KeyError, AttributeError) as e:
            raise ValueError(f'{path}: no readable safetensors ({" ".join(str(e).split())})') from None
        self.ours = {k: v for i in (None, *range(self.keys['n_layer'])) for k, v in names(i).items() if k != 'head' or not self.keys['tie']}

    def read(self, name):
        """A tensor under its name there."""
        if name not in self.where:
            raise ValueError(f'{self.path}: holds no {name}: it is not whole, or no Llama')
        raw, n, f, v = self.where[name]
        (a, b), dtype = v['data_offsets'], DTYPES.get(v['dtype'])
        if dtype is None or b - a != math.prod(v['shape']) * dtype.itemsize or n + b > len(raw):
            raise ValueError(f"{self.path / f}: {name} is damaged, or of a type that is not read ({v['dtype']})")
        return torch.frombuffer(bytearray(raw[n + a:n + b].tobytes()), dtype=dtype).view(v['shape'])

    def full(self, name):
        name = name.partition('/')[2]
        x, hd = [self.read(f'{n}.weight') for n in self.ours[name]], self.keys['n_embd'] // self.keys['n_head']
        x = torch.cat([pairs(w, hd) if n.endswith(('q_proj', 'k_proj')) else w for n, w in zip(self.ours[name], x)])
        if name in ('wte', 'head') and len(x) < self.vocab:     # new tokens begin as the mean of the old ones: neither likely nor far away
            x = torch.cat((x.float(), x.float().mean(0, keepdim=True).expand(self.vocab - len(x), -1)))
        return x

    def tensors(self, state):
        """Of (name, Spec, tensor, start) those that the folder holds."""
        for name, spec, x, *start in state:
            kind, _, ours = name.partition('/')
            if kind == 'param' and ours in self.ours:
                yield name, spec, x, *start

def write_safetensors(file, entries, read, metadata):
    """entries: [(name, dtype such as 'F32', shape)]; read(name) -> the tensor; metadata: {str: str}. The file is whole or absent."""
    head, at = {'__metadata__': metadata}, 0
    for name, dtype, shape in entries:
        size = math.prod(shape) * DTYPES[dtype].itemsize
        head[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[at, at + size])
        at += size
    text = json.dumps(head).encode()
    text += b' ' * (-len(text) % 8)
    tmp = Path(f'{file}.tmp')
    try:
        with open(tmp, 'wb') as f:
            f.write(len(text).to_bytes(8, 'little') + text)
            for name, dtype, _ in entries:
                f.write(read(name).to(DTYPES[dtype]).contiguous().view(-1).view(torch.uint8).numpy().data)
            f.flush()
            os.fsync(f.fileno())
        os.rename(tmp, file)
    finally:
        tmp.unlink(missing_ok=True)

def export_llama(m, full, out):
    """
    m: 'model' of a checkpoint's manifest; full(our name) -> tensor. Writes config.json and model.safetensors (float32) into the folder out.
    """
    out = Path(out)
    for k, v in FIXED.items():
        if m.get(k, v) != v:                                                 # a checkpoint from before the key had it off
            raise ValueError(f'{k}={m[k]}: a Llama has {k}={v}, this model cannot be written as one')
    if m['image'] and m.get('rope_2d'):
        raise ValueError('image=True, rope_2d=True: a Llama has rotary positions in one dimension, this model cannot be written as one')
    C, kv, ff, V = m['n_embd'], m['n_kv_head'] * (m['n_embd'] // m['n_head']), m['ff'], m['vocab_size']
    rows = {'k_proj': kv, 'v_proj': kv, 'gate_proj': ff, 'up_proj': ff, 'embed_tokens': V, 'lm_head': V}     # of all others: C
    parts = {}                                                               # name there -> (our name, first row, rows)
    for i in (None, *range(m['n_layer'])):
        for ours, theirs in names(i).items():
            at = 0
            for n in theirs if ours != 'head' or not m['tie'] else ():
                r = rows.get(n.rpartition('.')[2], C)
                parts[f'{n}.weight'], at = (ours, at, r), at + r
    def weight(n):
        x = full(parts[n][0]).narrow(0, *parts[n][1:])
        return halves(x, C // m['n_head']) if n.endswith(('q_proj.weight', 'k_proj.weight')) else x
    shape = lambda n: (parts[n][2],) + (() if 'norm' in n else (ff if 'down_proj' in n else C,))
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / 'model.safetensors', [(n, 'F32', shape(n)) for n in parts], weight, {'format': 'pt'})
    (out / 'config.json').write_text(json.dumps(dict(
        architectures=['LlamaForCausalLM'], model_type='llama', hidden_act='silu', attention_bias=False, mlp_bias=False,
        torch_dtype='float32',
        hidden_size=C, intermediate_size=ff, num_hidden_layers=m['n_layer'], num_attention_heads=m['n_head'],
        num_key_value_heads=m['n_kv_head'],
        head_dim=C // m['n_head'], vocab_size=V, rms_norm_eps=m['norm_eps'], rope_theta=m['rope_base'], tie_word_embeddings=m['tie'],
        bos_token_id=None, eos_token_id=None), indent=1))
