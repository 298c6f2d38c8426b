"""
Seeing, pointing, reading charts, drawing, hearing and thinking in pictures: one model, one run.

    python train.py config/train_skills.py --fsdd=fsdd_train.npz        the Free Spoken Digit Dataset, packed, or its folder
    python tests/bench/skills.py --from=out-skills                      the table with the targets, controls and contact sheets

Weights are per document: of the positions scenes are about 40%, objects, charts and visual 15% each, speech the rest.
"""
out_dir = 'out-skills'
dataset = 'scenes:6+objects:0.9+charts:0.6+visual:1.2+speech:4'
n_head = 8
block_size = 512
tokens_per_step = 2560
micro_rows = 5
flow_draws = 2
image_weight = 0.3
max_steps = 8000
save_every = 200
eval_docs = 100
skills = 200
