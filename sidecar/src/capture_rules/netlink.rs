//! Sends a transaction to the kernel and reads every answer.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{
    nfmessages::NfStep,
    refusal::{self, RulesRefused},
};

const NLMSG_ERROR: u16 = 2;
/// The answer has attributes behind the message that it is about.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Attribute of an answer: where in the message the kernel found the fault.
const NLMSGERR_ATTR_OFFS: u16 = 2;
/// Of an answer: its header, the error, and the header of the message that it is about.
const ANSWER: usize = 36;

/// A netlink socket for netfilter.
pub(super) struct Netlink {
    socket: Socket,
}

/// An answer of the kernel.
#[derive(Debug, PartialEq, Eq)]
struct NlAnswer {
    sequence: u32,
    /// 0 for an acknowledgement.
    error: i32,
    offset: Option<usize>,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, RulesRefused> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(refusal::of_socket)?;
        socket.bind_auto()?;
        // Both only make answers shorter and better; kernels before 4.12 have neither.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        // The kernel does the work while the message is sent: its answers are there when the call returns.
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Has the kernel do all of the transaction, or nothing and say why.
    pub(super) fn commit(&mut self, (bytes, steps): &(Vec<u8>, Vec<NfStep>)) -> Result<(), RulesRefused> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent != bytes.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        let mut done = vec![false; steps.len()];
        let mut refused = None;
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            for answer in answers(&datagram) {
                let index = usize::try_from(answer.sequence).unwrap_or_default().checked_sub(1);
                if answer.error == 0 {
                    if let Some(done) = index.and_then(|index| done.get_mut(index)) {
                        *done = true;
                    }
                } else if refused.is_none() {
                    let step = index.and_then(|index| steps.get(index));
                    let name = step.and_then(|step| expression(bytes, step.at + answer.offset?));
                    refused = Some(refusal::of_step(step, answer.error, name));
                }
            }
        }
        match (refused, steps.iter().zip(done).find(|(_, done)| !done)) {
            (Some(refused), _) => Err(refused),
            (None, Some((step, _))) => Err(RulesRefused::NoAnswer { what: step.what.clone() }),
            (None, None) => Ok(()),
        }
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The answers in a datagram.
fn answers(mut datagram: &[u8]) -> Vec<NlAnswer> {
    let mut found = Vec::new();
    while let Some(length) = number32(datagram, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some(message) = datagram.get(..length) else { break };
        found.extend(answer(message));
        let Some(rest) = datagram.get(length.next_multiple_of(4).max(16)..) else { break };
        datagram = rest;
    }
    found
}

fn answer(message: &[u8]) -> Option<NlAnswer> {
    if number16(message, 4)? != NLMSG_ERROR {
        return None;
    }
    let error = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?).wrapping_neg();
    let offset = if number16(message, 6)? & NLM_F_ACK_TLVS == 0 { None } else { fault(message) };
    Some(NlAnswer { sequence: number32(message, 8)?, error, offset })
}

/// Where in the message that failed the fault is.
fn fault(message: &[u8]) -> Option<usize> {
    let mut rest = message.get(ANSWER..)?;
    while let (Some(length), Some(kind)) = (number16(rest, 0), number16(rest, 2)) {
        if kind == NLMSGERR_ATTR_OFFS {
            return usize::try_from(number32(rest, 4)?).ok();
        }
        rest = rest.get(usize::from(length).next_multiple_of(4).max(4)..)?;
    }
    None
}

/// The name of the expression at this place of a transaction, if there is one: an element of a list whose first attribute is a name.
fn expression(bytes: &[u8], at: usize) -> Option<&str> {
    const ELEMENT: u16 = 0x8001;
    const NAME: u16 = 1;
    if number16(bytes, at + 2)? != ELEMENT || number16(bytes, at + 6)? != NAME {
        return None;
    }
    let end = at + 4 + usize::from(number16(bytes, at + 4)?);
    let name = std::str::from_utf8(bytes.get(at + 8..end)?).ok()?.trim_end_matches('\0');
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture_rules::nfmessages::{NfTransaction, counter, redirect};

    fn error(sequence: u32, error: i32, offset: Option<u32>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = 36 + if offset.is_some() { 8 } else { 0 };
        bytes.extend(u32::to_ne_bytes(length));
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend((if offset.is_some() { NLM_F_ACK_TLVS } else { 0 }).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend((-error).to_ne_bytes());
        bytes.extend([0; 16]);
        if let Some(offset) = offset {
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(NLMSGERR_ATTR_OFFS.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn reads_each_answer() {
        let datagram = [error(1, 0, None), error(2, 95, Some(40))].concat();
        assert_eq!(
            answers(&datagram),
            [NlAnswer { sequence: 1, error: 0, offset: None }, NlAnswer { sequence: 2, error: 95, offset: Some(40) }]
        );
    }

    #[test]
    fn what_is_cut_off_is_no_answer() {
        let whole = error(7, 95, Some(40));
        for end in 0..20 {
            assert_eq!(answers(&whole[..end]), []);
        }
        assert_eq!(answers(&[0; 64]), []);
    }

    #[test]
    fn finds_the_expression_at_fault() {
        let mut transaction = NfTransaction::begin("t");
        transaction.add_rule("c", "", &[counter(), redirect()]);
        let (bytes, steps) = transaction.end();
        let names: Vec<_> = (0..bytes.len()).filter_map(|at| expression(&bytes, at)).collect();
        assert_eq!(names, ["counter", "redir"]);
        assert_eq!(expression(&bytes, steps[0].at), None);
    }
}
