"""`python -m timm_stn` is `timm-stn`."""
import sys

from .cli import main

sys.exit(main())
