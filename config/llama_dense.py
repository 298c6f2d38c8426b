"""
Dense baseline in the manner of Llama: RMSNorm, RoPE, SwiGLU, grouped queries, AdamW (.9, .95), weight decay .1, cosine to a tenth.

    python train.py config/llama_dense.py

One CPU core, about a minute. Tuned on the dev split of stdlib (never the one that scores) at this budget, 1.1 million tokens for width
96. Nats per byte, one seed, learning rate 2.5e-3, 5e-3, 1e-2:

    width 96, 4 layers, 4.2e12 operations, batch 1024    1.4651  1.4555  1.5207     chosen: 5e-3
                                           batch 2048    1.5475  1.4680  1.5068
    width 64, 3 layers, 2.7e12 operations and as many CPU-seconds, batch 2048     -  1.4927  1.4722

Wider models and batches under 1024 were not tried. A count-only interpolated 5-gram reaches 1.3052 there in 2 CPU-seconds.
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
