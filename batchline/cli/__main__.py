"""`python -m batchline.cli`."""

from batchline.cli import main

main()
