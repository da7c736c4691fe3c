"""`deeplab app`: a local page on which scribbles are painted, and the dense CRF follows.

    server.py       the addresses of the page; reading requests, and running the server: start here
    guard.py        who may ask: hosts and origins, and what every answer forbids a browser to do
    visits.py       what is kept for each open page, within a bound, and whose turn it is
    inputs.py       photographs and results of networks, as they are opened
    refining.py     what is computed: the CRF on a photograph, whole, reduced, or step by step
    downloads.py    mask, overlay, settings, and the program that makes the same mask
    static/         the page: one document, one style sheet, modules of JavaScript; no build step

The server wants starlette and uvicorn: pip install 'deeplab-triton[app]'.
"""
