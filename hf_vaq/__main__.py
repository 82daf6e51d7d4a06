"""`python -m hf_vaq` is the command `hf-vaq`, so that `accelerate launch -m hf_vaq train RECIPE` can start it."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
