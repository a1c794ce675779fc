"""A batch of samples in 50 steps, ours and peers', in turns.

python benchmarks/sample.py [--config configs/cifar10.py] [--batch 4] [--help]
"""

from comparison import main

if __name__ == "__main__":
    main("sample", __doc__)
