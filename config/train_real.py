"""
Real data, one model: Shakespeare's plays, 1,600 emoji with names, recorded English speech with transcripts (and spoken digits, if you
have them).

    python train.py config/train_real.py
    python train.py config/train_real.py --fsdd=free-spoken-digit-dataset/recordings

2 CPU cores, about 17 minutes. Ends with the losses on held-out plays, emoji and recordings, and a table of skills beside their blind
controls.
"""
out_dir = 'out-real'
tokenizer = 'bytes'
dataset = 'shakespeare:1+emoji:1.2+speech:2'
n_layer = 5
n_head = 6
n_embd = 192
bins = 0                   # what is measured is from before there were any
block_size = 256
tokens_per_step = 4096
micro_rows = 16
max_steps = 3000
warmup = 100
save_every = 500
eval_docs = 0
skills = 300
