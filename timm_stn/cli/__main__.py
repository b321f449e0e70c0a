"""`python -m timm_stn.cli` is `timm-stn`, too."""
import sys

from . import main

sys.exit(main())
