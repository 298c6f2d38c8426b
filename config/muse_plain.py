"""
After config/muse.py: the recipe without tables.
"""
out_dir = 'out-muse-plain'
ngram = 0
smear = 3
n_layer = 3
max_steps = 700
