"""`python -m batchline` is the command `batchline`, also where the command itself is not on the PATH."""

from batchline.cli import main

main()
