"""`python -m treering.cli`: the `treering` script without the script."""

from treering.cli import main

main()
