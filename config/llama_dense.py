"""
Dense baseline in the manner of Llama: RMSNorm, RoPE, SwiGLU, grouped queries, AdamW (.9, .95), weight decay .1, cosine to a tenth.

    python train.py config/llama_dense.py

One CPU core, a good minute. Tuned on the dev split of stdlib (never the one that scores) for 4.2e12 operations, 1.1 million tokens at
width 96. Nats per byte, one seed, by learning rate:

                                                 1.25e-3  2.5e-3  3.5e-3    5e-3    1e-2    CPU-seconds
    width 96, 4 layers, batch 2048                     -  1.5475       -  1.4680  1.5068
                        batch 1024                     -  1.4651       -  1.4555  1.5207    45 to 62
                        the same, embed_lr 4           -       -  1.4370  1.4481       -
                        batch 512                      -  1.4298       -  1.4478       -    70
                        the same, embed_lr 4           -  1.4243       -       -       -    79         chosen
                        batch 256                      -  1.4106       -       -       -    109
    width 128, 4 layers, batch 1024                    -  1.5868       -  1.6189       -

Half the batch again gains 0.014 and costs 40% more CPU-seconds, which are compared too. A count-only interpolated 5-gram reaches 1.3052
there in 2 CPU-seconds.
"""
out_dir = 'out-llama-dense'
dataset = 'stdlib'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'auto'
block_size = 256
tokens_per_step = 512
micro_rows = 2
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
lr = 2.5e-3
embed_lr = 4.0
decay = 'cosine'
lr_end = 0.1
warmup = 200
max_steps = 2160
eval_docs = 0
save_every = 0
skills = 0
