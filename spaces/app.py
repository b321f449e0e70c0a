"""A Hugging Face Space with the page of `timm-stn app`; README.md beside it says how to make one."""
from timm_stn.app.serve import free_port, serve

HOST = '0.0.0.0'  # the Space's own gate is in front

if __name__ == '__main__':
    serve(host=HOST, port=free_port(HOST))
