"""The page of `timm-stn app`: a picture or a drawn digit, where a network looked in it, and what it answers.

Only `page` and `serve` need Gradio.
"""
