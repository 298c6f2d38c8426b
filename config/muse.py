"""
The recipe with memory (the lookup track): one block behind n-gram tables. Muon, QK-norm, ReLU^2, zero-initialised outputs, soft-capped
logits, linear decay to zero; rows for the last 2 to 6 bytes, 5 x 131,072 x 64 numbers (168 MB), of which a step touches those that its
bytes look up.

    python train.py config/muse.py
    python train.py config/muse.py config/muse_plain.py          without tables (the no-lookup track)

4.25e11 operations, 20 CPU-seconds: 1.218 nats per byte of held-out Python (dev), where config/llama_dense.py has 1.325 for 3.2e12. Without
token shift, on dev, for as many operations: 1.223, 1.223; 4 heads, ff 256, 5 steps of Muon's iteration 1.258, 1.256; from there 3 steps
1.255, 1.252; 2 heads and ff 192 1.242, and one head of keys and values with ff 128 1.232, 1.235, ff 96 1.228, ff 64 1.223; value embeddings
1.248 for 1.242, embed_lr 10 1.241. What is looked up costs a step the same whatever the block is: small blocks make more steps.
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
n_head = 2
n_kv_head = 1
n_embd = 64
ff = 64
muon_steps = 3
ngram = 6
lr = 0.02
embed_lr = 15.0
max_steps = 1080
warmup = 31
eval_docs = 0
save_every = 0
skills = 0
