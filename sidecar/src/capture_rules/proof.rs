//! Whether the rules do what they must, seen from inside the pod: a connection to an address that nobody has must arrive at the
//! capture port, and a datagram must not leave.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// TEST-NET-1 of RFC 5737.
const NOBODY4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80);
/// The range for documentation of RFC 3849.
const NOBODY6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 80);
/// A redirected connection arrives at once. A connection that is not redirected may meet a silent network.
const PATIENCE: Duration = Duration::from_secs(2);

const NOT_PERMITTED: i32 = 1;
const FAMILY_NOT_SUPPORTED: i32 = 97;
const ADDRESS_NOT_AVAILABLE: i32 = 99;
const NETWORK_UNREACHABLE: i32 = 101;
const HOST_UNREACHABLE: i32 = 113;
/// What a route of the types `prohibit` and `unreachable` gives.
const NO_ROUTE: [i32; 4] = [NETWORK_UNREACHABLE, HOST_UNREACHABLE, ADDRESS_NOT_AVAILABLE, 13];

/// What is known of an address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FamilyProof {
    /// A connection arrived at the capture port, and a datagram was refused.
    Captured,
    /// The same, and the sidecar listens already.
    CapturedByTheSidecar,
    /// Nothing can be sent, for want of a route.
    NoRoute,
    /// The kernel, or this network namespace, has no such addresses.
    Absent,
}

impl fmt::Display for FamilyProof {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Captured => "captured",
            Self::CapturedByTheSidecar => "captured (the sidecar listens already)",
            Self::NoRoute => "no default route to prove it by",
            Self::Absent => "not in this pod",
        })
    }
}

/// What is known of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    pub(super) v4: FamilyProof,
    pub(super) v6: FamilyProof,
}

/// Proves both families.
pub(super) fn prove(port: u16) -> anyhow::Result<Proof> {
    let v4 = family(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), NOBODY4).context("IPv4")?;
    let v6 = family(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), NOBODY6).context("IPv6")?;
    Ok(Proof { v4, v6 })
}

fn family(listen: SocketAddr, nobody: SocketAddr) -> anyhow::Result<FamilyProof> {
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) if matches!(error.raw_os_error(), Some(FAMILY_NOT_SUPPORTED | ADDRESS_NOT_AVAILABLE)) => {
            // Without a loopback address there is nowhere to redirect to. Nothing may leave all the same.
            refused_datagram(nobody)?;
            return Ok(FamilyProof::Absent);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot listen on {listen}, the capture port")),
    };
    let connected = connection(nobody, listener.as_ref())?;
    let refused = refused_datagram(nobody)?;
    Ok(match (connected, refused, listener) {
        (true, true, Some(_)) => FamilyProof::Captured,
        (true, true, None) => FamilyProof::CapturedByTheSidecar,
        (false, false, _) => FamilyProof::NoRoute,
        _ => bail!(
            "a connection finds a route to {nobody} and a datagram does not, or the other way round; look at the pod's routes"
        ),
    })
}

/// Whether a connection to an address that nobody has arrives at the capture port; false if there is no route to it.
fn connection(nobody: SocketAddr, listener: Option<&TcpListener>) -> anyhow::Result<bool> {
    let socket = Socket::new(Domain::for_address(nobody), Type::STREAM, None)?;
    // Leaves nothing behind on the capture port.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect_timeout(&SockAddr::from(nobody), PATIENCE) {
        Ok(()) => {}
        Err(error) if error.raw_os_error().is_some_and(|code| NO_ROUTE.contains(&code)) => return Ok(false),
        Err(error) => bail!(
            "a connection to {nobody} was not redirected to the capture port ({error}). Look for rules of others in this network \
             namespace: nft list ruleset"
        ),
    }
    let Some(listener) = listener else { return Ok(true) };
    let from = socket.local_addr()?.as_socket();
    let (stream, peer) =
        accept(listener).with_context(|| format!("a connection to {nobody} went elsewhere than to the capture port"))?;
    let original =
        original_destination(&stream, nobody).context("the original destination of a captured connection is not known")?;
    if original != nobody || Some(peer) != from {
        bail!("a connection from {from:?} to {nobody} arrived at the capture port as one from {peer} to {original}");
    }
    Ok(true)
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn original_destination(stream: &TcpStream, nobody: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = if nobody.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether a datagram to an address that nobody has is refused; false if there is no route to it.
fn refused_datagram(nobody: SocketAddr) -> anyhow::Result<bool> {
    let any = if nobody.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let sent = UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(b"toolweir", nobody));
    match sent.map_err(|error| error.raw_os_error()) {
        Err(Some(NOT_PERMITTED)) => Ok(true),
        Err(Some(FAMILY_NOT_SUPPORTED)) => Ok(false),
        Err(Some(code)) if NO_ROUTE.contains(&code) => Ok(false),
        Err(code) => {
            bail!("a datagram to {nobody} failed otherwise than by the rules: {:?}", code.map(io::Error::from_raw_os_error))
        }
        Ok(_) => bail!(
            "a datagram to {nobody} was not refused: UDP leaves the pod. Look for rules of others in this network namespace: nft list ruleset"
        ),
    }
}
