//! The rules of capture. `tests/capture/rules.nft` has the same in the language of nft.
//!
//! Redirection in `nat` sees the first packet of a connection only, so it is no boundary. The chain `guard` is: it drops what it
//! does not name. What belongs to whom is kept in bits of the connection's mark, since a packet has no user once its socket is
//! closed, and none before it is accepted.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::nfmessages::{
    CtKey, FibAddress, MetaKey, NfExpression, NfHook, NfKey, NfStep, NfTransaction, NfVerdict, PayloadBase, bitwise, counter, ct,
    differs, equal, fib_type, load, lookup, meta, payload, redirect, reject_with_reset, set_ct_mark, verdict,
};

/// The table. It belongs to Toolweir alone.
const TABLE: &str = "toolweir";
/// The sidecar opened the connection.
const SIDECAR: u32 = 0x1000_0000;
/// Somebody outside the pod opened it.
const INBOUND: u32 = 0x2000_0000;
/// The sidecar answered on it.
const ANSWERED: u32 = 0x4000_0000;

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ROUTING: u8 = 43;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SYN: u8 = 2;
const RST: u8 = 4;
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

/// What the rules depend on.
#[derive(Clone, Debug)]
pub(super) struct CaptureRules {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Where connections are redirected to.
    pub(super) capture: u16,
    /// All ports of the sidecar.
    pub(super) ports: [u16; 4],
    pub(super) resolvers4: BTreeSet<Ipv4Addr>,
    pub(super) resolvers6: BTreeSet<Ipv6Addr>,
}

/// The transaction that puts these rules in the place of those that are there. With `prover`, this user may answer on the
/// sidecar's ports too.
pub(super) fn write(set: &CaptureRules, prover: Option<u32>) -> (Vec<u8>, Vec<NfStep>) {
    let mut to = NfTransaction::begin(TABLE);
    // A table that does not exist cannot be deleted.
    to.add_table();
    to.delete_table();
    to.add_table();
    let octets4: Vec<_> = set.resolvers4.iter().map(|address| address.octets().to_vec()).collect();
    let octets6: Vec<_> = set.resolvers6.iter().map(|address| address.octets().to_vec()).collect();
    let ports: Vec<_> = set.ports.iter().map(|port| port.to_be_bytes().to_vec()).collect();
    to.add_set("resolvers4", NfKey::Ipv4, &octets4);
    to.add_set("resolvers6", NfKey::Ipv6, &octets6);
    to.add_set("ports", NfKey::Port, &ports);
    inbound(&mut to);
    capture(&mut to, set);
    answers(&mut to, set, prover);
    guard(&mut to, set);
    wire(&mut to);
    routed(&mut to);
    to.end()
}

/// Before a rule that trusts what answers a connection, one must know who opened it: an unprivileged IPv6 socket can have any source
/// address (`IPV6_FREEBIND`), and so a call that seems to come from outside.
fn inbound(to: &mut NfTransaction) {
    to.add_chain("inbound", Some(NfHook { kind: "filter", hook: PREROUTING, priority: -150, accept: true }));
    let outside =
        [vec![meta(MetaKey::IifName), differs(&device("lo")), ct(CtKey::Direction), equal(&[0]), counter()], mark(INBOUND)];
    to.add_rule("inbound", "somebody outside called the pod", &outside.concat());
}

/// Before the nat chains of others, such as a mesh's (-100), so that this mapping counts.
fn capture(to: &mut NfTransaction, set: &CaptureRules) {
    to.add_chain("capture", Some(NfHook { kind: "nat", hook: OUTPUT, priority: -105, accept: true }));
    let mut rule = |comment: &str, parts: &[Vec<NfExpression>]| to.add_rule("capture", comment, &parts.concat());
    rule("the sidecar", &[owner(set), counted(NfVerdict::Return)]);
    rule("loopback and the pod's own addresses", &[local(FibAddress::Destination), counted(NfVerdict::Return)]);
    for resolver in [to_resolver4(), to_resolver6()] {
        rule("DNS", &[resolver, to_dns(TCP), counted(NfVerdict::Return)]);
    }
    let port = set.capture.to_be_bytes();
    rule("everything else to the sidecar", &[protocol(TCP), vec![counter(), load(&port), redirect()]]);
}

/// Who answers on the sidecar's ports. A SYN cookie, a reset, a socket that is not accepted yet or closed already has no user.
fn answers(to: &mut NfTransaction, set: &CaptureRules, prover: Option<u32>) {
    const OTHER: &str = "somebody else answers on the sidecar's ports";
    to.add_chain("answers", None);
    let mut rule = |comment: &str, parts: &[Vec<NfExpression>]| to.add_rule("answers", comment, &parts.concat());
    if let Some(user) = prover {
        rule("while the rules are proven", &[vec![meta(MetaKey::SkUid), equal(&user.to_ne_bytes())], counted(NfVerdict::Return)]);
    }
    rule("the sidecar answers", &[owner(set), vec![counter()], mark(ANSWERED), vec![verdict(NfVerdict::Return)]]);
    rule(OTHER, &[not_user(set), counted(NfVerdict::Drop)]);
    rule(OTHER, &[not_group(set), counted(NfVerdict::Drop)]);
    rule("without a socket: last segments of the sidecar", &[marked(ANSWERED), counted(NfVerdict::Return)]);
    let flags = vec![flags(SYN | RST), differs(&[0])];
    let flags = [protocol(TCP), vec![payload(PayloadBase::Transport, 13, 1)], flags].concat();
    rule("without a socket: SYN cookie, nobody listens", &[flags, counted(NfVerdict::Return)]);
    rule("without a socket: not the sidecar's", &[counted(NfVerdict::Drop)]);
}

/// Every packet that leaves. Nothing that is not named here does.
fn guard(to: &mut NfTransaction, set: &CaptureRules) {
    to.add_chain("guard", Some(NfHook { kind: "filter", hook: OUTPUT, priority: 10, accept: false }));
    let mut rule = |comment: &str, parts: &[Vec<NfExpression>]| to.add_rule("guard", comment, &parts.concat());
    // Whoever is answered (a SYN-ACK, an ICMP error) at a forged address is outside.
    let forged = [state(NEW), vec![fib_type(FibAddress::Source), differs(&LOCAL.to_ne_bytes())]].concat();
    rule("forged source", &[forged, counted(NfVerdict::Drop)]);
    // A packet with its own route is addressed to its first stop: to a resolver, say, and then on to a stranger.
    let header = [family(NFPROTO_IPV6), vec![payload(PayloadBase::Network, 6, 1), equal(&[ROUTING])]].concat();
    rule("its own route: routing header", &[header, counted(NfVerdict::Drop)]);
    let options = vec![payload(PayloadBase::Network, 0, 1), bitwise(&[0x0f], &[0]), differs(&[5])];
    rule("its own route: IPv4 options", &[family(NFPROTO_IPV4), options, counted(NfVerdict::Drop)]);
    let port = vec![payload(PayloadBase::Transport, 0, 2), lookup("ports")];
    rule("", &[direction(true), protocol(TCP), port, vec![verdict(NfVerdict::Jump("answers"))]]);
    rule(
        "loopback, the pod's own addresses, and what was redirected",
        &[local(FibAddress::Destination), counted(NfVerdict::Accept)],
    );
    // Before the sidecar's rule: a mark on its questions would keep others from the same source port.
    for resolver in [to_resolver4(), to_resolver6()] {
        for over in [UDP, TCP] {
            rule("DNS", &[resolver.clone(), to_dns(over), counted(NfVerdict::Accept)]);
        }
    }
    // In the original direction only: marked otherwise, the sidecar's SYN-ACK marks the agent's connection.
    let opened = [vec![counter()], mark(SIDECAR), vec![verdict(NfVerdict::Accept)]].concat();
    rule("the sidecar", &[owner(set), direction(false), opened]);
    rule("the sidecar, out of its window", &[owner(set), state(INVALID), counted(NfVerdict::Accept)]);
    // What the sidecar's ended connections leave is of use to nobody else.
    rule("the sidecar's connection, another user", &[marked(SIDECAR), not_user(set), counted(NfVerdict::Drop)]);
    rule("the sidecar's connection, another group", &[marked(SIDECAR), not_group(set), counted(NfVerdict::Drop)]);
    // TIME_WAIT, what is sent after close(). Without SYN: a socket of the kernel's own (SMC) has no user either.
    let segments = [protocol(TCP), vec![payload(PayloadBase::Transport, 13, 1), flags(SYN), equal(&[0])]].concat();
    rule("without a socket: last segments of the sidecar", &[marked(SIDECAR), segments, counted(NfVerdict::Accept)]);
    // Probes, the pod's own Services, and ICMP errors to their callers.
    let answer = [direction(true), marked(INBOUND), state(ESTABLISHED | RELATED)].concat();
    rule("answers to who called the pod", &[answer, counted(NfVerdict::Accept)]);
    discovery(to);
    let mut rule = |comment: &str, parts: &[Vec<NfExpression>]| to.add_rule("guard", comment, &parts.concat());
    rule("out of its window: may be sent again", &[state(INVALID), counted(NfVerdict::Drop)]);
    rule("not redirected: older than the rules", &[protocol(TCP), vec![counter(), reject_with_reset()]]);
    rule("UDP, QUIC, ICMP, SCTP, raw", &[counted(NfVerdict::Drop)]);
}

/// What IPv6 cannot do without. A report of multicast groups may name those of neighbour discovery only: anybody can join a group,
/// and its address would carry data.
fn discovery(to: &mut NfTransaction) {
    /// The first bytes of a solicited-node address.
    const SOLICITED: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    let icmpv6 = |kind: u8| [protocol(ICMPV6), vec![payload(PayloadBase::Transport, 0, 1), equal(&[kind])]].concat();
    for kind in [133, 135, 136] {
        to.add_rule("guard", "neighbour discovery", &[icmpv6(kind), counted(NfVerdict::Accept)].concat());
    }
    let first = vec![payload(PayloadBase::Transport, 8, 13), equal(&SOLICITED)];
    to.add_rule("guard", "groups of neighbour discovery", &[icmpv6(131), first, counted(NfVerdict::Accept)].concat());
    // Of each record: no auxiliary data, no sources, the group.
    let record = [&[0; 3][..], &SOLICITED].concat();
    for records in 1..=2u8 {
        let mut parts = [icmpv6(143), vec![payload(PayloadBase::Transport, 6, 2), equal(&[0, records])]].concat();
        for index in 0..u32::from(records) {
            parts.extend([payload(PayloadBase::Transport, 9 + 20 * index, 16), equal(&record)]);
        }
        to.add_rule("guard", "groups of neighbour discovery", &[parts, counted(NfVerdict::Accept)].concat());
    }
}

/// A socket that is bound to a device (`SO_BINDTODEVICE`, an IPv6 scope) keeps that device after the redirection: what is for the
/// pod itself must not leave on a wire.
fn wire(to: &mut NfTransaction) {
    to.add_chain("wire", Some(NfHook { kind: "filter", hook: POSTROUTING, priority: 0, accept: true }));
    let outer = vec![meta(MetaKey::OifName), differs(&device("lo"))];
    let rule = [outer, local(FibAddress::Destination), counted(NfVerdict::Drop)].concat();
    to.add_rule("wire", "bound to a device: must not leave", &rule);
}

/// What is routed through the pod, such as a nested namespace: nothing.
fn routed(to: &mut NfTransaction) {
    to.add_chain("routed", Some(NfHook { kind: "filter", hook: FORWARD, priority: 0, accept: false }));
    to.add_rule("routed", "nothing is routed through the pod", &[counter()]);
}

fn owner(set: &CaptureRules) -> Vec<NfExpression> {
    vec![meta(MetaKey::SkUid), equal(&set.uid.to_ne_bytes()), meta(MetaKey::SkGid), equal(&set.gid.to_ne_bytes())]
}

fn not_user(set: &CaptureRules) -> Vec<NfExpression> {
    vec![meta(MetaKey::SkUid), differs(&set.uid.to_ne_bytes())]
}

fn not_group(set: &CaptureRules) -> Vec<NfExpression> {
    vec![meta(MetaKey::SkGid), differs(&set.gid.to_ne_bytes())]
}

fn counted(end: NfVerdict) -> Vec<NfExpression> {
    vec![counter(), verdict(end)]
}

fn local(of: FibAddress) -> Vec<NfExpression> {
    vec![fib_type(of), equal(&LOCAL.to_ne_bytes())]
}

fn family(number: u8) -> Vec<NfExpression> {
    vec![meta(MetaKey::NfProto), equal(&[number])]
}

fn protocol(number: u8) -> Vec<NfExpression> {
    vec![meta(MetaKey::L4Proto), equal(&[number])]
}

fn direction(reply: bool) -> Vec<NfExpression> {
    vec![ct(CtKey::Direction), equal(&[u8::from(reply)])]
}

/// Any of these states.
fn state(bits: u32) -> Vec<NfExpression> {
    vec![ct(CtKey::State), bitwise(&bits.to_ne_bytes(), &[0; 4]), differs(&[0; 4])]
}

/// Of the TCP flags in the register, these.
fn flags(bits: u8) -> NfExpression {
    bitwise(&[bits], &[0])
}

/// The connection has this bit.
fn marked(bit: u32) -> Vec<NfExpression> {
    vec![ct(CtKey::Mark), bitwise(&bit.to_ne_bytes(), &[0; 4]), equal(&bit.to_ne_bytes())]
}

/// Gives the connection this bit; others may use the rest of the mark.
fn mark(bit: u32) -> Vec<NfExpression> {
    vec![ct(CtKey::Mark), bitwise(&(!bit).to_ne_bytes(), &bit.to_ne_bytes()), set_ct_mark()]
}

fn to_resolver4() -> Vec<NfExpression> {
    [family(NFPROTO_IPV4), vec![payload(PayloadBase::Network, 16, 4), lookup("resolvers4")]].concat()
}

fn to_resolver6() -> Vec<NfExpression> {
    [family(NFPROTO_IPV6), vec![payload(PayloadBase::Network, 24, 16), lookup("resolvers6")]].concat()
}

fn to_dns(over: u8) -> Vec<NfExpression> {
    [protocol(over), vec![payload(PayloadBase::Transport, 2, 2), equal(&53u16.to_be_bytes())]].concat()
}

/// The name of a device, as the kernel compares it.
fn device(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> CaptureRules {
        CaptureRules {
            uid: 61501,
            gid: 61502,
            capture: 15002,
            ports: [15000, 15001, 15002, 15020],
            resolvers4: BTreeSet::new(),
            resolvers6: BTreeSet::new(),
        }
    }

    #[test]
    fn the_prover_may_answer_only_while_asked_for() {
        let (_, steps) = write(&set(), None);
        let (_, proving) = write(&set(), Some(0));
        assert_eq!(proving.len(), steps.len() + 1);
        let added = |steps: &[NfStep]| steps.iter().filter(|step| step.what.contains("while the rules are proven")).count();
        assert_eq!((added(&steps), added(&proving)), (0, 1));
    }

    #[test]
    fn only_resolvers_add_elements() {
        let before = write(&set(), None).1.len();
        let more = CaptureRules { resolvers4: BTreeSet::from([Ipv4Addr::new(10, 0, 0, 1)]), ..set() };
        assert_eq!(write(&more, None).1.len(), before + 1);
    }

    #[test]
    fn the_ports_are_those_given() {
        let other = CaptureRules { capture: 4000, ports: [1000, 2000, 3000, 4000], ..set() };
        let (bytes, _) = write(&other, None);
        let contains = |port: u16| bytes.windows(2).any(|part| part == port.to_be_bytes());
        assert!([1000, 2000, 3000, 4000].into_iter().all(contains));
        assert!(![15000, 15001, 15002, 15020].into_iter().any(contains));
    }
}
