"""
Dense baseline in the manner of Llama: RMSNorm, RoPE, SwiGLU, grouped queries, AdamW (.9, .95), weight decay .1, cosine to a tenth.

    python train.py config/llama_dense.py

About two minutes of one CPU core. Tuned on the dev split of stdlib (never the one that scores); nats per byte, one seed, by learning rate,
4 layers throughout. For 3.2e12 operations, in float32 on an EPYC, with the optimum inside:

    width  context  batch   3.5e-3    5e-3    7e-3    1e-2  CPU-seconds
       64      128    512        -  1.3790       -       -           82
       48      128    512   1.3517  1.3329  1.3251  1.3273          127  chosen
       40      128    512        -  1.3359       -       -          189  (3.4e12)

Context, larger widths and other batches were tried before, for 4.2e12, in bfloat16 on a Sapphire Rapids; below the line embed_lr 4:

    width  context  batch   1.25e-3  2.5e-3  3.5e-3    5e-3    1e-2    CPU-seconds
       96      256   2048         -  1.5475       -  1.4680  1.5068
       96      256   1024         -  1.4651       -  1.4555  1.5207    45 to 62
       96      256    512         -  1.4298       -  1.4478       -    70
      128      256   1024         -  1.5868       -  1.6189       -
    -----------------------------------------------------------------
       96      256   1024         -       -  1.4370  1.4481       -
       96      256    512         -  1.4243       -       -       -    79
       96      256    256         -  1.4106       -       -       -    109
       64      256   1024         -       -  1.3873       -       -    83
       64      256    512         -  1.3746       -  1.3523  1.3538    100
       48      256    512         -  1.3947       -       -       -    148
       64      128    512         -       -       -  1.3199       -    101
       64       64    512         -       -       -  1.3226       -    104
       64      128    256         -       -  1.3166* 1.3167       -    133        * 3e-3

Half of the batch gains 0.003 for a third more seconds: not taken.
"""
out_dir = 'out-llama-dense'
dataset = 'stdlib'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'auto'
block_size = 128
tokens_per_step = 512
micro_rows = 4
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 48
token_shift = False
act = 'swiglu'
qk_norm = False
zero_init = False
softcap = 0.0
z_loss = 0.0
muon = False
lr = 7e-3
embed_lr = 4.0
decay = 'cosine'
lr_end = 0.1
warmup = 570
max_steps = 6196
eval_docs = 0
save_every = 0
skills = 0
