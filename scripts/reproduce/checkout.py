"""The checkout's folder and the package's file writers, without importing the package: gpu.py runs without timm."""
import importlib.util
from pathlib import Path

__all__ = ['ROOT', 'place_of_file', 'place_of_folder', 'write_text', 'write_whole']

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location('whole_file', ROOT / 'timm_stn' / 'whole_file.py')
_whole_file = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_whole_file)
write_text, write_whole = _whole_file.write_text, _whole_file.write_whole
place_of_file, place_of_folder = _whole_file.place_of_file, _whole_file.place_of_folder
