"""Tries every way out of a captured pod that its kernel offers. Python 3 alone; runs in a network namespace and in a pod.

    python3 ways_out.py TARGETS [ROW...]

TARGETS is JSON:
    device     the outer device: eth0
    4, 6       for each family: outside (any address beyond the gateway), neighbour (in the pod's subnet), own (the pod's), link_local,
               metadata, resolver; for 4 also broadcast
    sidecar    uid, gid, and the ports admin, proxy, capture, metrics
    set_uid    optional: a program that is set-uid and set-gid for the sidecar's ids and runs `-c CODE` as Python
    reuse      optional, for each family: [own port, address, port] of a connection that the sidecar has ended

It prints a line of JSON for each row and family: row, family, result, detail, and when it began and ended (seconds since 1970). The
result is only the way's own word; what arrived outside decides. `answered`, `taken` and `deleted` are ways that were open in any case;
`untried` is what this kernel or image does not have.
"""

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

# Neither HTTP nor TLS, so that the sidecar need not wait for more.
TAG = b"\x01toolweir way out\r\n"
BANNER = b"OUTSIDE"
PATIENCE = 0.3
# No row may take longer.
LIMIT = 5
ABSENT = (
    errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT,
    errno.ESOCKTNOSUPPORT,
    errno.ENOSYS,
    errno.ENOPROTOOPT,
    errno.ENODEV,
)
IP_FREEBIND, IPV6_FREEBIND, IP_TRANSPARENT, IPV6_TRANSPARENT = 15, 78, 19, 75
AF_VSOCK, AF_XDP, AF_SMC = 40, 44, 43
libc = ctypes.CDLL(None, use_errno=True)
ROWS = []


def row(families=(4, 6)):
    def add(function):
        ROWS.extend((function.__name__, family, function) for family in families)
        return function

    return add


class Place:
    """Where a row may try to go, in one family."""

    def __init__(self, targets, family):
        self.all, self.number = targets, family
        self.family = socket.AF_INET if family == 4 else socket.AF_INET6
        self.device, self.sidecar = targets["device"], targets["sidecar"]
        self.loopback, self.any = ("127.0.0.1", "0.0.0.0") if family == 4 else ("::1", "::")
        for name, address in targets[str(family)].items():
            setattr(self, name, address)

    def address(self, host, port):
        if self.number == 6 and host.startswith("fe80:"):
            return (host, port, 0, socket.if_nametoindex(self.device))
        return (host, port)

    def open(self, kind=socket.SOCK_STREAM, protocol=0):
        made = socket.socket(self.family, kind, protocol)
        made.settimeout(PATIENCE)
        return made

    def freebind(self, kind=socket.SOCK_STREAM, protocol=0):
        """A socket that may have any source address."""
        made = self.open(kind, protocol)
        if self.number == 4:
            made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        return made


def says(made):
    """What a connected socket gets for its tag."""
    made.sendall(TAG)
    got = made.recv(200)
    if BANNER in got:
        return "answered", repr(got[:60])
    return ("ended", "") if not got else ("captured", repr(got[:60]))


def tcp(place, host, port, made=None):
    made = made or place.open()
    with made:
        made.connect(place.address(host, port))
        return says(made)


def udp(place, host, port, made=None, payload=b""):
    made = made or place.open(socket.SOCK_DGRAM)
    with made:
        made.sendto(TAG + payload, place.address(host, port))
        made.settimeout(0.1)
        got = made.recv(200)
        return ("answered" if BANNER in got else "ended"), repr(got[:60])


def several(*tries):
    """Tries one after another; the first that is open counts, or else the last."""
    found = []
    for one in tries:
        found.append(attempt(one))
        if found[-1][0] in ("answered", "taken", "deleted"):
            return found[-1]
    return found[-1][0], "; ".join(f"{result} {detail}".strip() for result, detail in found)


def attempt(function, *arguments):
    try:
        return function(*arguments) or ("sent", "")
    except TimeoutError as error:
        return "silent", "stuck" if error.args == ("stuck",) else ""
    except OSError as error:
        if error.errno in ABSENT:
            return "untried", os.strerror(error.errno)
        return "refused", errno.errorcode.get(error.errno, str(error.errno))


# Addresses and ports


@row()
def address_literal(place):
    return several(lambda: tcp(place, place.outside, 443), lambda: tcp(place, place.outside, 80))


@row((4,))
def mapped_address(place):
    with socket.socket(socket.AF_INET6) as made:
        made.settimeout(PATIENCE)
        made.connect((f"::ffff:{place.outside}", 443))
        return says(made)


@row((4,))
def mapped_address_udp(place):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.sendto(TAG, (f"::ffff:{place.outside}", 443))


@row((6,))
def translated_address(place):
    inside = socket.inet_aton(place.all["4"]["outside"])
    nat64 = socket.inet_ntop(socket.AF_INET6, bytes.fromhex("0064ff9b") + bytes(8) + inside)
    six = socket.inet_ntop(socket.AF_INET6, bytes.fromhex("2002") + inside + bytes(10))
    return several(lambda: tcp(place, nat64, 80), lambda: tcp(place, six, 80), lambda: udp(place, nat64, 443))


@row()
def link_local(place):
    return several(lambda: tcp(place, place.link_local, 80), lambda: udp(place, place.link_local, 80))


@row()
def metadata(place):
    return several(lambda: tcp(place, place.metadata, 80), lambda: udp(place, place.metadata, 80))


@row()
def neighbour(place):
    return several(lambda: tcp(place, place.neighbour, 80), lambda: udp(place, place.neighbour, 80))


@row()
def other_port(place):
    return several(*(lambda port=port: tcp(place, place.outside, port) for port in (22, 5432, place.sidecar["capture"], 65535)))


@row()
def plain_udp(place):
    return udp(place, place.outside, 9999)


@row()
def connected_udp(place):
    made = place.open(socket.SOCK_DGRAM)
    made.connect((place.outside, 9999))
    with made:
        made.send(TAG)


@row()
def quic(place):
    return udp(place, place.outside, 443, payload=bytes(1182))


@row()
def large_udp(place):
    """More than a packet holds: fragments."""
    return udp(place, place.outside, 4433, payload=bytes(9000))


@row()
def foreign_dns_udp(place):
    return several(lambda: udp(place, place.outside, 53), lambda: udp(place, place.neighbour, 53))


@row()
def foreign_dns_tcp(place):
    return several(lambda: tcp(place, place.outside, 53), lambda: tcp(place, place.neighbour, 53))


@row()
def resolver_other_port(place):
    return several(
        lambda: tcp(place, place.resolver, 853), lambda: udp(place, place.resolver, 853), lambda: udp(place, place.resolver, 5353)
    )


@row()
def expiring_udp(place):
    made = place.open(socket.SOCK_DGRAM)
    if place.number == 4:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    return udp(place, place.outside, 33434, made)


@row()
def multicast(place):
    return udp(place, *(("224.0.0.251", 5353) if place.number == 4 else ("ff02::fb%" + place.device, 5353)))


@row((4,))
def broadcast(place):
    def to(host):
        made = place.open(socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return udp(place, host, 9999, made)

    return several(lambda: to("255.255.255.255"), lambda: to(place.broadcast))


@row()
def multicast_membership(place):
    """The report of a group carries its address."""
    with place.open(socket.SOCK_DGRAM) as made, place.open(socket.SOCK_DGRAM) as sources:
        index = socket.if_nametoindex(place.device)
        if place.number == 4:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", socket.inet_aton("239.83.69.67"), bytes(4), index))
        else:
            group = socket.inet_pton(socket.AF_INET6, "ff15::5345:4352:4554")
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=I", index))
            # MCAST_JOIN_SOURCE_GROUP: a solicited-node group, and a source that carries data.
            near = socket.inet_pton(socket.AF_INET6, "ff02::1:ff53:4543")
            storage = [struct.pack("=HHI", socket.AF_INET6, 0, 0) + one + bytes(128 - 24) for one in (near, group)]
            sources.setsockopt(socket.IPPROTO_IPV6, 46, struct.pack("=II", index, 0) + b"".join(storage))
        time.sleep(0.3)


# Kinds of sockets


def echo(place):
    return struct.pack("!BBHHH", 8 if place.number == 4 else 128, 0, 0, 7, 1) + TAG


ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


@row()
def ping_socket(place):
    with place.open(socket.SOCK_DGRAM, ICMP[place.number]) as made:
        made.sendto(echo(place), (place.outside, 0))
        made.recv(200)
        return "answered", "an echo"


@row()
def raw_icmp(place):
    with place.open(socket.SOCK_RAW, ICMP[place.number]) as made:
        made.sendto(echo(place), (place.outside, 0))


@row()
def raw_tcp(place):
    with place.open(socket.SOCK_RAW, socket.IPPROTO_TCP) as made:
        made.sendto(struct.pack("!HHIIBBHHH", 4000, 80, 1, 0, 0x50, 2, 1000, 0, 0), (place.outside, 0))


@row()
def raw_tunnel(place):
    """GRE, L2TP, IP in IP, ESP."""

    def send(protocol):
        with place.open(socket.SOCK_RAW, protocol) as made:
            made.sendto(TAG, (place.outside, 0))

    return several(*(lambda protocol=protocol: send(protocol) for protocol in (47, 115, 4 if place.number == 4 else 41, 50)))


@row()
def raw_header(place):
    with place.open(socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
        made.sendto(TAG, (place.outside, 0))


@row((4,))
def packet_socket(place):
    def send(kind):
        with socket.socket(socket.AF_PACKET, kind, 0) as made:
            made.bind((place.device, 0x0800))
            made.send(bytes(14) + TAG + bytes(46))

    return several(lambda: send(socket.SOCK_RAW), lambda: send(socket.SOCK_DGRAM))


@row((4,))
def xdp_socket(place):
    socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()
    return "taken", "an AF_XDP socket"


@row()
def udp_lite(place):
    return udp(place, place.outside, 9999, place.open(socket.SOCK_DGRAM, 136))


@row()
def sctp(place):
    return several(
        lambda: tcp(place, place.outside, 9999, place.open(socket.SOCK_STREAM, 132)),
        lambda: udp(place, place.outside, 9999, place.open(socket.SOCK_SEQPACKET, 132)),
    )


@row()
def dccp(place):
    return tcp(place, place.outside, 9999, place.open(6, 33))


@row()
def mptcp(place):
    return tcp(place, place.outside, 443, place.open(socket.SOCK_STREAM, 262))


@row()
def smc(place):
    made = socket.socket(AF_SMC, socket.SOCK_STREAM, 0 if place.number == 4 else 1)
    made.settimeout(PATIENCE)
    return tcp(place, place.outside, 443, made)


@row((4,))
def vsock(_place):
    """To this machine alone (the local context id). Without its transport, a kernel would ask its hypervisor."""
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        try:
            made.bind((1, 0xFFFFFFFF))
        except OSError as error:
            return "untried", os.strerror(error.errno)
        made.connect((1, 9999))
    return "answered", "a vsock"


@row((4,))
def other_families(_place):
    """RDS, TIPC, RxRPC, KCM, CAN, L2TP, X.25: sockets that send without an IP rule of ours, or with one's own."""
    found = {}
    for name, family, kind, protocol in (
        ("rds", 21, 5, 0),
        ("tipc", 30, 2, 0),
        ("rxrpc", 33, 2, 2),
        ("kcm", 41, 2, 0),
        ("can", 29, 3, 1),
        ("l2tp", 2, 2, 115),
        ("x25", 9, 5, 0),
        ("qrtr", 42, 2, 0),
    ):
        found[name] = attempt(lambda family=family, kind=kind, protocol=protocol: socket.socket(family, kind, protocol).close())
    return ("untried" if all(one[0] != "sent" for one in found.values()) else "sent"), ", ".join(f"{name} {one[1] or one[0]}" for name, one in found.items())


# Options of sockets


@row()
def so_mark(place):
    made = place.open()
    made.setsockopt(socket.SOL_SOCKET, 36, 0x10000000)
    return tcp(place, place.outside, 443, made)


@row()
def bound_to_device(place):
    def bound(kind, device):
        made = place.open(kind)
        made.setsockopt(socket.SOL_SOCKET, 25, device.encode() + b"\0")
        return made

    return several(
        lambda: tcp(place, place.outside, 443, bound(socket.SOCK_STREAM, place.device)),
        lambda: udp(place, place.outside, 443, bound(socket.SOCK_DGRAM, place.device)),
        lambda: tcp(place, place.outside, 443, bound(socket.SOCK_STREAM, "lo")),
        lambda: udp(place, place.outside, 443, bound(socket.SOCK_DGRAM, "lo")),
    )


@row()
def loopback_by_device(place):
    """The pod's own addresses, over its outer device."""
    hosts = [place.loopback, place.own, *place.all.get("extra", {}).get(str(place.number), [])]

    def bound(kind):
        made = place.open(kind)
        made.setsockopt(socket.SOL_SOCKET, 25, place.device.encode() + b"\0")
        return made

    ways = []
    for host in hosts:
        ways.append(lambda host=host: tcp(place, host, 80, bound(socket.SOCK_STREAM)))
        ways.append(lambda host=host: udp(place, host, 80, bound(socket.SOCK_DGRAM)))
    return several(*ways)


@row()
def packet_info(place):
    """The device and source address as ancillary data."""
    index = socket.if_nametoindex(place.device)
    if place.number == 4:
        data = (socket.IPPROTO_IP, 8, struct.pack("=i4s4s", index, socket.inet_aton(place.own), bytes(4)))
    else:
        data = (socket.IPPROTO_IPV6, 50, socket.inet_pton(socket.AF_INET6, place.own) + struct.pack("=i", index))
    with place.open(socket.SOCK_DGRAM) as made:
        made.sendmsg([TAG], [data], 0, (place.outside, 9999))


@row()
def dont_route(place):
    with place.open(socket.SOCK_DGRAM) as made:
        made.sendto(TAG, socket.MSG_DONTROUTE, (place.neighbour, 9999))


@row()
def source_routing(place):
    """A route in the packet: by the gateway, and by the pod itself."""

    def routed(kind, first):
        made = place.open(kind)
        if place.number == 4:
            hop = socket.inet_aton(first)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + hop + b"\0")
        else:
            # A segment routing header (RFC 8754): the segments in reverse.
            segments = [socket.inet_pton(socket.AF_INET6, host) for host in (place.outside, first)]
            header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + b"".join(segments)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        return made

    ways = []
    for first in (place.own, place.loopback, place.neighbour, place.resolver):
        ways.append(lambda first=first: tcp(place, place.outside, 443, routed(socket.SOCK_STREAM, first)))
        ways.append(lambda first=first: udp(place, place.outside, 53, routed(socket.SOCK_DGRAM, first)))
    return several(*ways)


@row((6,))
def extension_headers(place):
    def with_option(option, data):
        made = place.open(socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IPV6, option, data)
        return udp(place, place.outside, 443, made)

    padding = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    return several(lambda: with_option(socket.IPV6_HOPOPTS, padding), lambda: with_option(socket.IPV6_DSTOPTS, padding))


@row((6,))
def flow_label(place):
    made = place.open()
    made.setsockopt(socket.IPPROTO_IPV6, 33, 1)
    made.setsockopt(socket.IPPROTO_IPV6, 32, socket.inet_pton(socket.AF_INET6, place.outside) + struct.pack("!IBBHHHI", 0x12345, 0, 255, 1, 6, 6, 0))
    with made:
        made.connect((place.outside, 443, 0x12345, 0))
        return says(made)


@row()
def transparent(place):
    made = place.open()
    level, option = (socket.IPPROTO_IP, IP_TRANSPARENT) if place.number == 4 else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
    made.setsockopt(level, option, 1)
    made.bind((place.outside, 4001))
    return tcp(place, place.neighbour, 80, made)


@row()
def fast_open(place):
    with place.open() as made:
        made.sendto(TAG, socket.MSG_FASTOPEN, (place.outside, 443))
        got = made.recv(200)
        return ("answered" if BANNER in got else "captured"), repr(got[:60])


@row()
def tcp_repair(place):
    """A connection that was never opened."""
    with place.open() as made:
        made.setsockopt(socket.IPPROTO_TCP, 19, 1)
        made.connect((place.outside, 443))
        made.sendall(TAG)
    return "taken", "a socket under repair"


# Forged sources: whoever is answered at a forged address is outside


@row()
def forged_udp_answer(place):
    with place.freebind(socket.SOCK_DGRAM) as caller, place.open(socket.SOCK_DGRAM) as answerer:
        answerer.bind((place.own, 6000))
        caller.bind((place.outside, 5353))
        called = attempt(lambda: caller.sendto(TAG, (place.own, 6000)) and None)
        answerer.sendto(TAG, (place.outside, 5353))
        return "sent", f"the call: {called}"


@row()
def forged_tcp_answer(place):
    with place.freebind() as caller, place.open() as listener:
        listener.bind((place.own, 6001))
        listener.listen()
        caller.bind((place.outside, 5354))
        caller.connect((place.own, 6001))


@row()
def forged_captured(place):
    caller = place.freebind()
    caller.bind((place.outside, 5355))
    return tcp(place, place.neighbour, 80, caller)


@row()
def forged_to_sidecar(place):
    def call(host, port):
        caller = place.freebind()
        caller.bind((place.outside, 5356))
        return tcp(place, host, port, caller)

    return several(
        lambda: call(place.loopback, place.sidecar["proxy"]),
        lambda: call(place.own, place.sidecar["metrics"]),
        lambda: call(place.loopback, place.sidecar["capture"]),
        lambda: call(place.own, 1),
    )


@row()
def forged_error(place):
    """The kernel's error about a closed port holds what was sent to it."""
    with place.freebind(socket.SOCK_DGRAM) as caller:
        caller.bind((place.outside, 5357))
        caller.sendto(TAG, (place.own, 1))
        time.sleep(0.05)


@row()
def forged_ping(place):
    with place.freebind(socket.SOCK_DGRAM, ICMP[place.number]) as caller:
        caller.bind((place.outside, 5))
        caller.sendto(echo(place), (place.own, 0))
        time.sleep(0.05)


@row()
def forged_dns(place):
    with place.freebind(socket.SOCK_DGRAM) as caller:
        caller.bind((place.outside, 5358))
        caller.sendto(TAG, (place.resolver, 53))


# Being the sidecar


@row()
def sidecars_ids(place):
    uid, gid = place.sidecar["uid"], place.sidecar["gid"]
    for name, take in (
        ("setgid", lambda: os.setgid(gid)),
        ("setegid", lambda: os.setegid(gid)),
        ("setgroups", lambda: os.setgroups([gid])),
        ("setuid", lambda: os.setuid(uid)),
        ("seteuid", lambda: os.seteuid(uid)),
        ("setreuid", lambda: os.setreuid(uid, uid)),
        ("setresuid", lambda: os.setresuid(uid, uid, uid)),
    ):
        if attempt(take)[0] == "sent":
            return "taken", name
    libc.setfsgid(gid), libc.setfsuid(uid)
    if libc.setfsuid(-1) == uid:
        return "taken", "setfsuid"
    return tcp(place, place.outside, 443)


@row()
def set_uid_program(place):
    program = place.all.get("set_uid")
    if not program:
        return "untried", "no such program in this image"
    code = (
        f"import os, socket\nprint(os.geteuid(), os.getegid(), end=' ', flush=True)\n"
        f"s = socket.create_connection(({place.outside!r}, 443), {PATIENCE})\ns.sendall({TAG!r})\nprint(s.recv(99))"
    )
    ran = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=10)
    if str(place.sidecar["uid"]) in ran.stdout.split() or str(place.sidecar["gid"]) in ran.stdout.split():
        return "taken", ran.stdout.strip()
    return ("answered" if BANNER.decode() in ran.stdout else "refused"), f"ids {ran.stdout.strip()}"


@row((4,))
def sidecars_sockets(place):
    """A socket of the sidecar's, by /proc and pidfd_getfd."""
    seen = 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == place.sidecar["uid"]:
                seen += 1
                os.listdir(f"/proc/{entry}/fd")
                return "taken", f"process {entry}"
        except OSError:
            continue
    return "refused", f"{seen} of its processes to be seen"


@row()
def capture_port_itself(place):
    return several(
        lambda: tcp(place, place.loopback, place.sidecar["capture"]),
        lambda: tcp(place, place.own, place.sidecar["capture"]),
    )


@row()
def sidecars_ports_taken(place):
    """A second listener on the sidecar's ports while it runs."""

    def take(host, port):
        with place.open() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((host, port))
            made.listen()
        return "taken", f"{host}:{port}"

    ports = place.sidecar
    return several(
        lambda: take(place.loopback, ports["capture"]), lambda: take(place.loopback, ports["proxy"]) if place.number == 4 else take("::", ports["capture"])
    )


@row()
def sidecars_ended_connection(place):
    reuse = place.all.get("reuse", {}).get(str(place.number))
    if not reuse:
        return "untried", "no connection was given"

    def again(option, kind=socket.SOCK_STREAM):
        made = place.open(kind)
        made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(("", reuse[0]))
        return (tcp if kind == socket.SOCK_STREAM else udp)(place, reuse[1], reuse[2], made)

    def open_fast():
        with place.open() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", reuse[0]))
            made.sendto(TAG, socket.MSG_FASTOPEN, (reuse[1], reuse[2]))

    return several(
        lambda: again(socket.SO_REUSEADDR), lambda: again(socket.SO_REUSEPORT), open_fast, lambda: again(socket.SO_REUSEADDR, socket.SOCK_DGRAM)
    )


# The rules, the kernel's settings, and networks of one's own


def attribute(kind, data):
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def netlink(protocol, *messages):
    """Sends messages and gives the first error, or None if each was done."""
    with socket.socket(16, socket.SOCK_RAW, protocol) as made:
        return ask(made, *messages)


def ask(made, *messages):
    made.settimeout(0.2)
    made.sendto(b"".join(struct.pack("=IHHII", len(body) + 16, kind, 5, 1, 0) + body for kind, body in messages), (0, 0))
    error = None
    try:
        while True:
            got = made.recv(8192)
            if struct.unpack_from("=H", got, 4)[0] == 2:
                error = error or -struct.unpack_from("=i", got, 16)[0]
    except TimeoutError:
        return error


DELETE_TABLE = (
    (0x10, struct.pack("!BBH", 0, 0, 10)),
    ((10 << 8) | 2, struct.pack("!BBH", 1, 0, 0) + attribute(1, b"toolweir\0")),
    (0x11, struct.pack("!BBH", 0, 0, 10)),
)
FLUSH_CONNECTIONS = (((1 << 8) | 2, struct.pack("!BBH", 2, 0, 0)),)


@row((4,))
def deleting_the_rules(_place):
    errors = [netlink(12, *DELETE_TABLE), netlink(12, *FLUSH_CONNECTIONS)]
    if not all(errors):
        return "deleted", str(errors)
    return "refused", ", ".join(errno.errorcode[error] for error in errors)


@row((4,))
def changing_routes_and_devices(place):
    index = socket.if_nametoindex(place.device)
    route = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0) + attribute(1, socket.inet_aton(place.outside)) + attribute(4, struct.pack("=I", index))
    link = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"way0\0") + attribute(18, attribute(1, b"veth"))
    address = struct.pack("=BBBBI", 2, 32, 0, 0, index) + attribute(2, socket.inet_aton(place.outside))
    errors = [netlink(0, (24, route)), netlink(0, (16, link)), netlink(0, (20, address))]
    if not all(errors):
        return "taken", str(errors)
    return "refused", ", ".join(errno.errorcode[error] for error in errors)


@row((4,))
def kernel_settings(place):
    opened = []
    for name, value in (
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/accept_source_route", "1"),
        (f"ipv4/conf/{place.device}/route_localnet", "1"),
        ("ipv4/ip_nonlocal_bind", "1"),
        ("ipv6/conf/all/seg6_enabled", "1"),
        ("netfilter/nf_conntrack_tcp_loose", "1"),
    ):
        try:
            with open(f"/proc/sys/net/{name}", "w") as file:
                file.write(value)
            opened.append(name)
        except OSError:
            pass
    return ("taken", ", ".join(opened)) if opened else ("refused", "")


def in_child(function):
    """Runs a function in a process of its own, since what it does cannot be undone."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(attempt(function)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return tuple(json.loads(file.read() or '["refused", "it ended"]'))


def unshare(flags):
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


USER, NET = 0x10000000, 0x40000000


@row()
def nested_user_namespace(place):
    """All capabilities in a namespace of one's own, in the pod's network."""

    def inside():
        before = socket.socket(16, socket.SOCK_RAW, 12)
        unshare(USER)
        if not ask(before, *DELETE_TABLE) or not netlink(12, *DELETE_TABLE):
            return "deleted", ""
        for kind, protocol in ((socket.SOCK_RAW, ICMP[place.number]),):
            if attempt(lambda: place.open(kind, protocol).close())[0] == "sent":
                return "taken", "a raw socket"
        made = place.open()
        if attempt(lambda: made.setsockopt(socket.SOL_SOCKET, 36, 0x10000000))[0] == "sent":
            return "taken", "a socket's mark"
        return tcp(place, place.outside, 443, made)

    return in_child(inside)


@row()
def nested_network(place):
    """A network of one's own, with sockets of the pod's network carried into it, and devices in it."""

    def inside():
        carried, datagrams = place.open(), place.open(socket.SOCK_DGRAM)
        outer = os.open("/proc/self/ns/net", os.O_RDONLY)
        unshare(USER | NET)
        found = [attempt(lambda: tcp(place, place.outside, 443, carried)), attempt(lambda: udp(place, place.outside, 443, datagrams))]
        found.append(attempt(lambda: tcp(place, place.outside, 443)))
        # A device of this network whose other end is in the pod's.
        peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"way1\0") + attribute(28, struct.pack("=i", outer))
        link = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"way0\0")
        link += attribute(18, attribute(1, b"veth") + attribute(2, attribute(1, peer)))
        if not netlink(0, (16, link)):
            return "taken", "a device between both networks"
        return next((one for one in found if one[0] == "answered"), ("refused", str(found)))

    return in_child(inside)


@row((4,))
def tun(_place):
    def create():
        with open("/dev/net/tun", "r+b", buffering=0) as file:
            if libc.ioctl(file.fileno(), 0x400454CA, struct.pack("=16sH22x", b"way%d", 0x1001)):
                raise OSError(ctypes.get_errno(), "TUNSETIFF")
            return "taken", "a device"

    try:
        return create()
    except FileNotFoundError:
        return "untried", "no /dev/net/tun"


@row()
def io_uring(place):
    """A connection and a datagram that no system call of this process makes."""
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 8, parameters)
    if ring < 0:
        return ("untried" if ctypes.get_errno() == errno.ENOSYS else "refused"), errno.errorcode[ctypes.get_errno()]
    words = struct.unpack("=30I", parameters.raw)
    entries, sq, cq = words[0], words[10:18], words[20:28]
    queue = mmap.mmap(ring, sq[6] + entries * 4, offset=0)
    done = mmap.mmap(ring, cq[5] + words[1] * 16, offset=0x8000000)
    requests = mmap.mmap(ring, entries * 64, offset=0x10000000)

    def submit(request):
        tail = struct.unpack_from("=I", queue, sq[1])[0]
        slot = tail % entries
        requests[slot * 64 : slot * 64 + 64] = request.ljust(64, b"\0")
        struct.pack_into("=I", queue, sq[6] + slot * 4, slot)
        struct.pack_into("=I", queue, sq[1], tail + 1)
        libc.syscall(426, ring, 1, 1, 1, None, 0)
        head = struct.unpack_from("=I", done, cq[0])[0]
        result = struct.unpack_from("=i", done, cq[5] + (head % words[1]) * 16 + 8)[0]
        struct.pack_into("=I", done, cq[0], head + 1)
        if result < 0:
            raise OSError(-result, "io_uring")

    if place.number == 4:
        name = struct.pack("=H", 2) + struct.pack("!H4s8x", 443, socket.inet_aton(place.outside))
    else:
        name = struct.pack("=H", 10) + struct.pack("!HI16sI", 443, 0, socket.inet_pton(socket.AF_INET6, place.outside), 0)
    address = ctypes.create_string_buffer(name, len(name))

    def connect(kind):
        with place.open(kind) as made:
            submit(struct.pack("=BBHiQQI", 16, 0, 0, made.fileno(), len(name), ctypes.addressof(address), 0))
            made.setblocking(True)
            made.settimeout(PATIENCE)
            if kind == socket.SOCK_STREAM:
                return says(made)
            data = ctypes.create_string_buffer(TAG, len(TAG))
            submit(struct.pack("=BBHiQQI", 26, 0, 0, made.fileno(), 0, ctypes.addressof(data), len(TAG)))
            return "sent", ""

    return several(lambda: connect(socket.SOCK_STREAM), lambda: connect(socket.SOCK_DGRAM))


# Ways that others begin: they run alone, when they are named


def older_connection(place):
    """A connection and datagrams from before the rules: says that it is ready, and goes on when a line arrives."""
    made, datagrams = place.open(), place.open(socket.SOCK_DGRAM)
    made.connect((place.outside, 80))
    first = says(made)
    datagrams.connect((place.outside, 4434))
    datagrams.send(TAG)
    print(json.dumps({"ready": place.number, "first": first}), flush=True)
    sys.stdin.readline()
    began = time.time()

    def go_on():
        datagram = attempt(lambda: datagrams.send(TAG) and None)
        made.settimeout(2)
        return several(lambda: datagram, lambda: says(made))

    return began, go_on()


def instead_of_sidecar(place):
    """Listens on the sidecar's ports while it is down, and answers in every way that leaves a packet without a user."""
    ports = [place.sidecar[name] for name in ("admin", "proxy", "capture", "metrics")]
    listeners = []
    for port in ports:
        listener = place.open()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.number == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((place.any, port))
        # A short queue: the kernel answers with SYN cookies, which have no user.
        listener.listen(0)
        listener.setblocking(False)
        listeners.append(listener)
    print(json.dumps({"ready": place.number}), flush=True)
    accepted, until = 0, time.time() + 4
    while time.time() < until:
        for listener in select.select(listeners, [], [], 0.1)[0]:
            try:
                stream, _ = listener.accept()
            except OSError:
                continue
            accepted += 1
            # What is in the queue of a closed socket is sent again, and without a user.
            stream.sendall(b"HTTP/1.0 200 OK\r\n\r\nIMPOSTOR")
            stream.close()
    return "sent", f"{accepted} accepted"


ALONE = {"older_connection": older_connection, "instead_of_sidecar": instead_of_sidecar}


def report(name, family, began, result, detail):
    line = {"row": name, "family": family, "result": result, "detail": detail, "began": began, "ended": time.time()}
    print(json.dumps(line), flush=True)


def stuck(*_):
    raise TimeoutError("stuck")


def main():
    signal.signal(signal.SIGALRM, stuck)
    targets, wanted = json.loads(sys.argv[1]), sys.argv[2:]
    for name in wanted:
        if name in ALONE:
            for family in targets.get("families", [4, 6]):
                place = Place(targets, family)
                began = time.time()
                found = ALONE[name](place)
                if name == "older_connection":
                    began, found = found
                report(name, family, began, *found)
            return
    for name, family, function in ROWS:
        if (wanted and name not in wanted) or family not in targets.get("families", [4, 6]):
            continue
        began = time.time()
        signal.alarm(LIMIT)
        result, detail = attempt(function, Place(targets, family))
        signal.alarm(0)
        # What a row leaves behind arrives before the next begins.
        time.sleep(0.03)
        report(name, family, began, result, detail)


main()
