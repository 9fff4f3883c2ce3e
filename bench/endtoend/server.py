"""Python's own static server without its forty milliseconds.

    python server.py FOLDER

http.server sends head and body apart, and Nagle's algorithm holds the body of
each small file back until the client's delayed acknowledgement; what feeds
are served by in earnest sends at once. Says its port, then serves.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1]))
    print(server.server_address[1], flush=True)
    server.serve_forever()
