"""A batch of terms of the bound, ours and peers', in turns: a unit of a loop over all T.

python benchmarks/nll.py [--config configs/cifar10.py] [--batch 4] [--help]
"""

from comparison import main

if __name__ == "__main__":
    main("nll", __doc__)
