"""A server over stdio that is a pipe: the stage, at the other end of a socket, says all of it. `stdio_server.py SOCKET`"""

import os
import socket
import sys
import threading


def pump(read, write):
    while data := read():
        write(data)


with socket.socket(socket.AF_UNIX) as link:
    link.connect(sys.argv[1])
    threading.Thread(target=pump, args=(lambda: link.recv(1 << 16), lambda data: os.write(1, data)), daemon=True).start()
    pump(lambda: os.read(0, 1 << 16), link.sendall)
