"""
Dense baseline in the manner of Llama: RMSNorm, RoPE, SwiGLU, grouped queries, AdamW (.9, .95), weight decay .1, cosine to a tenth.
"""
out_dir = 'out-llama-dense'
dataset = 'stdlib'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'auto'
block_size = 256
tokens_per_step = 1024
micro_rows = 4
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 96
act = 'swiglu'
qk_norm = False
zero_init = False
softcap = 0.0
z_loss = 0.0
muon = False
lr = 5e-3
embed_lr = 1.0
decay = 'cosine'
lr_end = 0.1
warmup = 100
max_steps = 1080
eval_docs = 0
save_every = 0
skills = 0
