"""
Seeing, pointing, reading charts, drawing, hearing and thinking in pictures: one model, one run.

    python train.py config/train_skills.py --fsdd=fsdd_train.npz        the Free Spoken Digit Dataset, packed, or its folder
    python tests/bench/skills.py --from=out-skills                      the table with the targets, controls and contact sheets

Measured: 34 minutes on one core (1976 CPU-seconds, 12.3 M positions, 3.7 M parameters); two were not free, where it is under half an hour.
Weights are per document: of the positions scenes are about 40%, objects and charts 17% each, visual 12%, speech 14%. Learned by then:
scenes, and of objects what needs no shape. Reading charts, thinking in pictures, drawing shapes want more; README has the table.
"""
out_dir = 'out-skills'
dataset = 'scenes:6+objects:1.2+charts:0.3+visual:0.4+speech:4'
block_size = 512
tokens_per_step = 2560
micro_rows = 5
flow_draws = 2
image_weight = 0.3
max_steps = 6400
save_every = 200
eval_docs = 100
skills = 200
