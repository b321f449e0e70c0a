"""`python -m timm_stn.cli` runs `timm-stn`."""
import sys

from . import main

sys.exit(main())
