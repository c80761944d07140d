"""``python -m fpn_bench`` is ``fpn-bench``; so torchrun can start it: ``torchrun ... -m fpn_bench train ...``."""

from fpn_bench.cli import main

main()
