"""An optimizer step, ours and peers', in turns.

python benchmarks/train_step.py [--config configs/cifar10.py] [--batch 4] [--help]
"""

from comparison import main

if __name__ == "__main__":
    main("train", __doc__)
