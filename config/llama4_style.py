"""
After config/llama_dense.py: the baseline in the manner of Llama 4. Behind the first layer every token goes to a shared expert and to the
one of 8 experts whose sigmoid score is highest (top-1; the gate is the score).

    python train.py config/llama_dense.py config/llama4_style.py

As many operations per token as the dense one. Tuned like it, on dev, for 4.25e12 operations; seeds 1337, 2 and 3:

    width  context  batch   1.25e-3  2.5e-3                 3.5e-3   5e-3                   7e-3     CPU-seconds
       96      256   1024    1.5531  1.4416                          1.4223
       96      256    512    1.4527  1.4036                          1.4360
       64      256    512         -  1.3378                          1.3272
       64      128    512         -       -                 1.2948   1.2889, 1.2711, 1.2703  1.2953   152      chosen
       64      128    256         -  1.2958                 1.2803,  1.2953                          230
                                                            1.2829

The first three in bfloat16 on a Sapphire Rapids, the others in float32 on an EPYC. Half of the batch gains nothing beyond what a seed does
for half as many seconds more. Width and context are at the edge: 48 and 64, no better for the dense one, are untried here.
"""
out_dir = 'out-llama4-style'
n_expert = 8
top_k = 1
expert_ff = 96
shared_ff = 96
