"""
All skills on one H100, from the start: config/train_skills.py with 4 to 13 times the data, a larger model, and batches four times as large.

    python train.py                                            the default job, which also learns the 128 merges of the tokenizer
    for n in scenes:150000 objects:60000 charts:50000 visual:80000; do
        python data/${n%:*}/prepare.py --n_train=${n#*:} --workers=8 --tokenizer=bpe:128; done
    python train.py config/train_skills.py config/skills_h100.py --fsdd=fsdd_train.npz
    python tests/bench/skills.py --from=out-skills

Run once, 5702 steps in 4.9 minutes: 58 M positions, 13.6 M parameters; README has the table. The GPU was idle four fifths of that time: the
batches came through pipes then. They come through shared memory now, which has not been run there yet.
"""
dataset = 'scenes:3.3+objects:1.4+charts:0.7+visual:2.5+speech:2.9'
n_layer = 6
n_head = 6
n_embd = 384
bins = 0                   # what is measured is from before there were any
flow_draws = 2
tokens_per_step = 10240
micro_rows = 20
lr = 2e-3
max_steps = 5700
save_every = 0
graph = True
workers = 10
