//! Messages of `nf_tables` as bytes: attributes, expressions, and a transaction of them. Numbers are those of
//! `linux/netfilter/nf_tables.h`; integers in attributes are big-endian, except for values that the kernel compares as it has them.

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NFPROTO_INET: u8 = 1;
/// The length of a netlink header, and of that of netfilter behind it.
const HEADERS: usize = 20;

/// One attribute.
fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.len() + 8);
    bytes.extend(u16::try_from(data.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that contains others.
fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &parts.concat())
}

/// An attribute with a number.
fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// An attribute with a name.
fn name(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// An attribute with a value to compare or to load.
fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nest(kind, &[attribute(1, bytes)])
}

/// One expression of a rule: it loads, compares, changes or decides. All of them use the first register.
#[derive(Clone, Debug)]
pub(super) struct NfExpression {
    /// The kernel's name for it.
    pub(super) name: &'static str,
    bytes: Vec<u8>,
}

fn expression(kind: &'static str, data: &[Vec<u8>]) -> NfExpression {
    NfExpression { name: kind, bytes: nest(1, &[name(1, kind), nest(2, data)]) }
}

/// What `meta` loads.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum MetaKey {
    IifName = 6,
    OifName = 7,
    SkUid = 10,
    SkGid = 11,
    NfProto = 15,
    L4Proto = 16,
}

/// What `ct` loads.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum CtKey {
    State = 0,
    Direction = 1,
    Mark = 3,
}

/// Which of the packet's addresses is looked up.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum FibAddress {
    Source = 1,
    Destination = 2,
}

/// Which header of the packet is read.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum PayloadBase {
    Network = 1,
    Transport = 2,
}

/// What ends a rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum NfVerdict {
    Drop,
    Accept,
    Return,
    Jump(&'static str),
}

pub(super) fn meta(key: MetaKey) -> NfExpression {
    expression("meta", &[number(1, 1), number(2, key as u32)])
}

pub(super) fn ct(key: CtKey) -> NfExpression {
    expression("ct", &[number(1, 1), number(2, key as u32)])
}

/// Sets the mark of the connection to the register.
pub(super) fn set_ct_mark() -> NfExpression {
    expression("ct", &[number(2, CtKey::Mark as u32), number(4, 1)])
}

/// Loads the type of an address: local, unicast, multicast...
pub(super) fn fib_type(of: FibAddress) -> NfExpression {
    expression("fib", &[number(1, 1), number(2, 3), number(3, of as u32)])
}

pub(super) fn payload(base: PayloadBase, offset: u32, length: u32) -> NfExpression {
    expression("payload", &[number(1, 1), number(2, base as u32), number(3, offset), number(4, length)])
}

/// Goes on if the register has this value.
pub(super) fn equal(bytes: &[u8]) -> NfExpression {
    expression("cmp", &[number(1, 1), number(2, 0), value(3, bytes)])
}

/// Goes on if the register has another value.
pub(super) fn differs(bytes: &[u8]) -> NfExpression {
    expression("cmp", &[number(1, 1), number(2, 1), value(3, bytes)])
}

/// Keeps the bits of `mask` and then turns those of `flip`.
pub(super) fn bitwise(mask: &[u8], flip: &[u8]) -> NfExpression {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    expression("bitwise", &[number(1, 1), number(2, 1), number(3, length), value(4, mask), value(5, flip)])
}

/// Goes on if the set contains the register.
pub(super) fn lookup(set: &str) -> NfExpression {
    expression("lookup", &[name(1, set), number(2, 1)])
}

pub(super) fn counter() -> NfExpression {
    expression("counter", &[])
}

/// Loads a value.
pub(super) fn load(bytes: &[u8]) -> NfExpression {
    expression("immediate", &[number(1, 1), value(2, bytes)])
}

/// Redirects to the port in the register.
pub(super) fn redirect() -> NfExpression {
    expression("redir", &[number(1, 1), number(2, 1), number(3, 2)])
}

pub(super) fn reject_with_reset() -> NfExpression {
    expression("reject", &[number(1, 1), attribute(2, &[0])])
}

pub(super) fn verdict(verdict: NfVerdict) -> NfExpression {
    let (code, target) = match verdict {
        NfVerdict::Drop => (0i32, None),
        NfVerdict::Accept => (1, None),
        NfVerdict::Jump(chain) => (-3, Some(chain)),
        NfVerdict::Return => (-5, None),
    };
    let mut parts = vec![attribute(1, &code.to_be_bytes())];
    parts.extend(target.map(|chain| name(2, chain)));
    expression("immediate", &[number(1, 0), nest(2, &[nest(2, &parts)])])
}

/// A base chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct NfHook {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// Whether packets that no rule decides are accepted.
    pub(super) accept: bool,
}

/// What a set contains.
#[derive(Clone, Copy, Debug)]
pub(super) enum NfKey {
    Ipv4,
    Ipv6,
    Port,
}

/// What a message asks of the kernel, in words for errors.
#[derive(Clone, Debug)]
pub(super) struct NfStep {
    /// What is written: `the rule "loopback" of the chain capture`.
    pub(super) what: String,
    /// The parts of the kernel that it needs: `table`, `nat chain`, `set`, or the names of expressions.
    pub(super) needs: Vec<&'static str>,
    /// Where its message begins in the transaction.
    pub(super) at: usize,
}

/// A transaction: the kernel does all of it or nothing.
#[derive(Clone, Debug)]
pub(super) struct NfTransaction {
    table: &'static str,
    bytes: Vec<u8>,
    /// Each message that is acknowledged; the first has the sequence number 1.
    steps: Vec<NfStep>,
}

impl NfTransaction {
    /// Begins a transaction on a table of the family `inet`.
    pub(super) fn begin(table: &'static str) -> Self {
        let mut begun = Self { table, bytes: Vec::new(), steps: Vec::new() };
        begun.message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, 0, &[]);
        begun
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, sequence: usize, body: &[u8]) {
        self.bytes.extend(u32::try_from(HEADERS + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(u32::try_from(sequence).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }

    fn step(&mut self, operation: u16, flags: u16, what: String, needs: Vec<&'static str>, body: &[Vec<u8>]) {
        self.steps.push(NfStep { what, needs, at: self.bytes.len() });
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | operation;
        self.message(kind, flags | NLM_F_ACK, NFPROTO_INET, 0, self.steps.len(), &body.concat());
    }

    /// Creates the table, unless it exists.
    pub(super) fn add_table(&mut self) {
        self.step(0, NLM_F_CREATE, format!("the table {}", self.table), vec!["table"], &[name(1, self.table)]);
    }

    /// Deletes the table and all that is in it.
    pub(super) fn delete_table(&mut self) {
        self.step(2, 0, format!("the table {}", self.table), vec!["table"], &[name(1, self.table)]);
    }

    /// Creates a set and what it contains.
    pub(super) fn add_set(&mut self, set: &str, key: NfKey, elements: &[Vec<u8>]) {
        let (kind, length) = match key {
            NfKey::Ipv4 => (7, 4),
            NfKey::Ipv6 => (8, 16),
            NfKey::Port => (13, 2),
        };
        let id = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let body = [name(1, self.table), name(2, set), number(3, 0), number(4, kind), number(5, length), number(10, id)];
        self.step(9, NLM_F_CREATE, format!("the set {set}"), vec!["set"], &body);
        if elements.is_empty() {
            return;
        }
        let elements: Vec<_> = elements.iter().map(|element| nest(1, &[value(1, element)])).collect();
        let body = [name(1, self.table), name(2, set), number(4, id), nest(3, &elements)];
        self.step(12, NLM_F_CREATE, format!("the elements of the set {set}"), vec!["set"], &body);
    }

    /// Creates a chain; without a hook, one that rules jump to.
    pub(super) fn add_chain(&mut self, chain: &str, hook: Option<NfHook>) {
        let mut body = vec![name(1, self.table), name(3, chain)];
        let mut needs = vec!["table"];
        if let Some(NfHook { kind, hook, priority, accept }) = hook {
            body.push(nest(4, &[number(1, hook), attribute(2, &priority.to_be_bytes())]));
            body.extend([number(5, u32::from(accept)), name(7, kind)]);
            if kind == "nat" {
                needs = vec!["nat chain"];
            }
        }
        self.step(3, NLM_F_CREATE, format!("the chain {chain}"), needs, &body);
    }

    /// Appends a rule to a chain.
    pub(super) fn add_rule(&mut self, chain: &str, comment: &str, expressions: &[NfExpression]) {
        let list: Vec<_> = expressions.iter().map(|expression| expression.bytes.clone()).collect();
        let mut body = vec![name(1, self.table), name(2, chain), nest(4, &list)];
        if !comment.is_empty() {
            // As nft writes a comment: the type 0, the length, the text and a NUL.
            let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
            body.push(attribute(7, &[&[0, length], comment.as_bytes(), &[0]].concat()));
        }
        let needs = expressions.iter().map(|expression| expression.name).collect();
        self.step(6, NLM_F_CREATE | NLM_F_APPEND, format!("the rule {comment:?} of the chain {chain}"), needs, &body);
    }

    /// Ends the transaction: its bytes and its steps.
    pub(super) fn end(mut self) -> (Vec<u8>, Vec<NfStep>) {
        self.message(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, self.steps.len() + 1, &[]);
        (self.bytes, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        assert_eq!(name(1, "ct"), [&7u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"ct\0\0"].concat());
        assert_eq!(number(2, 3), [&8u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), &[0, 0, 0, 3]].concat());
        assert_eq!(nest(4, &[number(1, 1)]).len(), 12);
        assert_eq!(nest(4, &[])[2..4], 0x8004u16.to_ne_bytes());
    }

    #[test]
    fn a_jump_names_its_chain() {
        let jump = verdict(NfVerdict::Jump("answers"));
        assert_eq!(jump.name, "immediate");
        assert!(jump.bytes.windows(8).any(|part| part == b"answers\0"));
        assert!(jump.bytes.windows(4).any(|part| part == (-3i32).to_be_bytes()));
    }

    #[test]
    fn a_transaction_numbers_its_steps_and_ends() {
        let mut transaction = NfTransaction::begin("t");
        transaction.add_table();
        transaction.add_set("s", NfKey::Port, &[]);
        transaction.add_chain("c", None);
        transaction.add_rule("c", "why", &[counter(), verdict(NfVerdict::Drop)]);
        let (bytes, steps) = transaction.end();
        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            let length = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(bytes[at + 4..at + 6].try_into().unwrap());
            seen.push((kind, u32::from_ne_bytes(bytes[at + 8..at + 12].try_into().unwrap()), at));
            assert_eq!(length % 4, 0);
            at += length;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(seen.iter().map(|one| one.0).collect::<Vec<_>>(), [0x10, 0xa00, 0xa09, 0xa03, 0xa06, 0x11]);
        assert_eq!(seen.iter().map(|one| one.1).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(steps.iter().map(|step| step.at).collect::<Vec<_>>(), seen[1..5].iter().map(|one| one.2).collect::<Vec<_>>());
        assert_eq!(steps[3].what, "the rule \"why\" of the chain c");
        assert_eq!(steps[3].needs, ["counter", "immediate"]);
    }
}
