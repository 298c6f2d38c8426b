"""
Baseline in the manner of Llama 4: as llama_dense.py, but behind the first layer every token goes to a shared expert and to the one of
8 experts whose sigmoid score is highest (top-1; the gate is the score).

    python train.py config/llama4_style.py

As many operations per token as llama_dense.py, at three times its CPU-seconds: eight small products in place of a large one. Batch and
learning rate are those tuned for llama_dense.py; **a grid of its own has not been run yet**.
"""
out_dir = 'out-llama4-style'
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
n_expert = 8
top_k = 1
expert_ff = 128
shared_ff = 128
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
