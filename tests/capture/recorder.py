"""Records every packet that comes in on a device: a line of JSON each, with the time at which the kernel got it.

    recorder.py DEVICE

It reads below all protocols, so that what nobody listens for is recorded too. A line "ready" comes first.
"""

import json
import socket
import struct
import sys

EXTENSIONS = {0: "hop-by-hop", 43: "routing", 44: "fragment", 60: "destination"}
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite", 33: "dccp", 47: "gre"}
SO_TIMESTAMPNS = 35
FLAGS = "FSRPAU"


def transport(protocol, rest, found):
    found["protocol"] = PROTOCOLS.get(protocol, str(protocol))
    if protocol in (6, 17, 33, 132, 136) and len(rest) >= 8:
        found["from_port"], found["port"] = struct.unpack_from("!HH", rest)
    if protocol == 6 and len(rest) >= 20:
        found["flags"] = "".join(letter for bit, letter in enumerate(FLAGS) if rest[13] >> bit & 1)
        rest = rest[(rest[12] >> 4) * 4 :]
    elif protocol in (17, 136):
        rest = rest[8:]
    elif protocol in (1, 58) and len(rest) >= 4:
        found["kind"] = rest[0]
    found["data"] = rest[:1400].decode("latin-1")


def read(ethertype, packet):
    """What a packet says, as far as it can be read."""
    if ethertype == 0x0806 and len(packet) >= 28:
        return {"protocol": "arp", "to": socket.inet_ntoa(packet[24:28]), "data": ""}
    found = {"protocol": hex(ethertype), "data": packet[:1400].decode("latin-1")}
    if ethertype == 0x0800 and len(packet) >= 20:
        found["from"], found["to"] = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        length = (packet[0] & 15) * 4
        if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF:
            return found | {"protocol": "fragment"}
        transport(packet[9], packet[length : struct.unpack_from("!H", packet, 2)[0]], found)
    elif ethertype == 0x86DD and len(packet) >= 40:
        found["from"], found["to"] = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
        rest, following = packet[40 : 40 + struct.unpack_from("!H", packet, 4)[0]], packet[6]
        while following in EXTENSIONS and len(rest) >= 8:
            # A router alert is a part of each report of multicast groups.
            if not (following == 0 and rest[:2] == b"\x3a\x00"):
                found.setdefault("extensions", []).append(EXTENSIONS[following])
            length = 8 if following == 44 else rest[1] * 8 + 8
            following, rest = rest[0], rest[length:]
        transport(following, rest, found)
    return found


def main():
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        made.bind((sys.argv[1], 3))
        print("ready", flush=True)
        while True:
            packet, ancillary, _, address = made.recvmsg(65536, 256)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
            print(json.dumps({"time": seconds + nanoseconds / 1e9} | read(address[1], packet)), flush=True)


main()
