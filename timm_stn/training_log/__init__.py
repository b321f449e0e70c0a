"""Logs while a script trains, which knows nothing of them: ``timm-stn train ... --stn-log N``."""
