"""
The recipe with memory (the lookup track): one block behind n-gram tables. Muon, QK-norm, ReLU^2, zero-initialised outputs, soft-capped
logits, linear decay to zero; rows for the last 2 to 6 bytes, 5 x 131,072 x 64 numbers (168 MB), of which a step touches those that its
bytes look up.

    python train.py config/muse.py
    python train.py config/muse.py config/muse_plain.py          without tables (the no-lookup track)

7 CPU-seconds. 1.377 nats per byte of held-out Python (dev; seeds 1.368, 1.379, 1.383) for 0.19 TFLOP. With one thing changed, seed 1337:
no tables 1.921, AdamW for the matrices 1.410, no QK-norm 1.367 (within the noise).
"""
out_dir = 'out-muse'
dataset = 'stdlib'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'float32'
block_size = 128
tokens_per_step = 1024
micro_rows = 8
n_layer = 1
n_head = 4
n_embd = 64
ngram = 6
lr = 0.02
embed_lr = 15.0
max_steps = 300
warmup = 20
eval_docs = 0
save_every = 0
skills = 0
