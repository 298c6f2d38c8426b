"""
After config/muse.py: the recipe without hashed tables (the no-lookup track): three blocks, and the three bytes before each embedded
with it.

27 CPU-seconds. 1.444 nats per byte of held-out Python (dev, one seed) for 1.11 TFLOP, with 260,592 parameters.
"""
out_dir = 'out-muse-plain'
ngram = 0
smear = 3
n_layer = 3
max_steps = 700
