//! The wire format of `take.lua`: its arguments and its reply are written and read here alone, in the order that the head of the
//! script describes.

use std::sync::Arc;

use redis::Cmd;
use smallvec::SmallVec;
use toolweir_engine::{Amount, window::Slice};

use crate::slices::Micros;

/// One count in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountRequest {
    /// The digest in the count's key.
    pub digest: Arc<str>,
    /// The length of its window.
    pub window: Micros,
    /// The most that may count in the window.
    pub max: Amount,
    /// The amount to take; zero only tells of the lease.
    pub amount: Amount,
    /// The amount to lease ahead of use.
    pub ahead: Amount,
    /// The length of the new lease.
    pub lease_length: Micros,
    /// The number of the lease that is extended, told of or closed.
    pub lease_number: u64,
    /// The lease is closed.
    pub closes_lease: bool,
    /// The uses of the lease, by slice.
    pub uses: Vec<(Slice, Amount)>,
}

impl CountRequest {
    /// Returns whether it reports uses of a lease or asks for a lease.
    pub fn concerns_lease(&self) -> bool {
        self.ahead > Amount::ZERO || !self.uses.is_empty()
    }

    fn write(&self, cmd: &mut Cmd) {
        let Self { digest: _, window, max, amount, ahead, lease_length, lease_number, closes_lease, uses } = self;
        let numbers = [
            window.0,
            max.millionths(),
            amount.millionths(),
            ahead.millionths(),
            lease_length.0,
            *lease_number,
            u64::from(*closes_lease),
        ];
        for number in numbers {
            cmd.arg(number);
        }
        cmd.arg(uses.len());
        for (slice, amount) in uses {
            cmd.arg(slice.0).arg(amount.millionths());
        }
    }
}

/// One `maxConcurrent` in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceRequest {
    /// The digest in the key of the places.
    pub digest: Arc<str>,
    /// The most places that may be held.
    pub max: u64,
    /// The number of this message: the greatest number is the newest.
    pub number: u64,
    /// The places that the pod holds, with the one that it asks for.
    pub held: u64,
    /// The time for which the pod's places last without another message.
    pub life: Micros,
}

impl PlaceRequest {
    fn write(&self, cmd: &mut Cmd) {
        let Self { digest: _, max, number, held, life } = self;
        for number in [*max, *number, *held, life.0] {
            cmd.arg(number);
        }
    }
}

/// The request for one [`toolweir_engine::shared::SharedDemand`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DemandRequest {
    /// The counts.
    pub counts: SmallVec<[CountRequest; 2]>,
    /// The places.
    pub places: SmallVec<[PlaceRequest; 1]>,
}

/// A request to take what a call wants.
#[derive(Debug)]
pub struct TakeRequest {
    /// For each demand of the call, in its order.
    pub demands: SmallVec<[DemandRequest; 2]>,
    /// When it was made, in microseconds of this process' clock.
    pub sent: u64,
}

/// The reply is not of the form that the request asks for.
#[derive(Debug, thiserror::Error)]
#[error("the store's answer has another form")]
pub struct UnreadableReply;

/// The decision of the store about a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemandStatus {
    /// Nothing was taken: something does not fit.
    Refused,
    /// All was taken.
    Taken,
    /// The demand was not looked at, since the first one was refused.
    NotAsked,
}

/// When an amount fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Now.
    Fits,
    /// After this time, if nothing else is taken before.
    After(Micros),
    /// Never: it is more than the maximum.
    Never,
}

/// The reply about one count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountReply {
    /// The amount that counts now in all pods, leased amounts included.
    pub used: Amount,
    /// When the amount fits.
    pub wait: Wait,
    /// The amount that is leased anew.
    pub leased: Amount,
}

impl CountReply {
    fn new(used: i64, wait: i64, leased: i64) -> Self {
        let amount = |number| Amount::from_millionths(u64::try_from(number).unwrap_or(0));
        let wait = match u64::try_from(wait) {
            Ok(0) => Wait::Fits,
            Ok(wait) => Wait::After(Micros(wait)),
            Err(_) => Wait::Never,
        };
        Self { used: amount(used), wait, leased: amount(leased) }
    }
}

/// The reply about one demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandReply {
    /// The decision.
    pub status: DemandStatus,
    /// For each count of the demand.
    pub counts: SmallVec<[CountReply; 2]>,
    /// For each place: whether it fits.
    pub places: SmallVec<[bool; 1]>,
}

impl DemandReply {
    /// Reads the reply to a demand, and returns the numbers that follow it.
    fn read<'a>(demand: &DemandRequest, numbers: &'a [i64]) -> Option<(Self, &'a [i64])> {
        let (status, rest) = numbers.split_first()?;
        let (counts, rest) = rest.split_at_checked(3 * demand.counts.len())?;
        let (places, rest) = rest.split_at_checked(demand.places.len())?;
        let status = match status {
            0 => DemandStatus::Refused,
            1 => DemandStatus::Taken,
            2 => DemandStatus::NotAsked,
            _ => return None,
        };
        let counts: SmallVec<[CountReply; 2]> = counts
            .chunks_exact(3)
            .filter_map(|count| if let [used, wait, leased] = *count { Some(CountReply::new(used, wait, leased)) } else { None })
            .collect();
        let places: SmallVec<[bool; 1]> = places.iter().map(|fits| *fits != 0).collect();
        // A refusal has a reason.
        let fits = counts.iter().all(|count| count.wait == Wait::Fits) && places.iter().all(|fits| *fits);
        (status != DemandStatus::Refused || !fits).then_some((Self { status, counts, places }, rest))
    }
}

impl TakeRequest {
    /// Writes the arguments that follow the pod's name.
    pub(crate) fn write(&self, cmd: &mut Cmd) {
        cmd.arg(self.demands.len());
        for DemandRequest { counts, places } in &self.demands {
            cmd.arg(counts.len()).arg(places.len());
            for count in counts {
                count.write(cmd);
            }
            for place in places {
                place.write(cmd);
            }
        }
    }

    /// Reads the numbers that follow the time in the reply.
    ///
    /// # Errors
    /// They are not of the form of a reply to this request.
    pub fn read_reply(&self, numbers: &[i64]) -> Result<SmallVec<[DemandReply; 2]>, UnreadableReply> {
        let mut rest = numbers;
        let mut replies = SmallVec::new();
        for demand in &self.demands {
            let (reply, after) = DemandReply::read(demand, rest).ok_or(UnreadableReply)?;
            replies.push(reply);
            rest = after;
        }
        if rest.is_empty() { Ok(replies) } else { Err(UnreadableReply) }
    }
}

/// Writes the arguments that follow the pod's name in a request about one lease.
pub(crate) fn write_lease(cmd: &mut Cmd, count: &CountRequest) {
    cmd.arg(1).arg(1).arg(0);
    count.write(cmd);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> TakeRequest {
        let count = CountRequest {
            digest: "d".into(),
            window: Micros(60),
            max: Amount::from_millionths(2),
            amount: Amount::from_millionths(3),
            ahead: Amount::from_millionths(4),
            lease_length: Micros(5),
            lease_number: 6,
            closes_lease: true,
            uses: vec![(Slice(8), Amount::from_millionths(9))],
        };
        let place = PlaceRequest { digest: "p".into(), max: 10, number: 11, held: 12, life: Micros(13) };
        let both = DemandRequest { counts: [count].into_iter().collect(), places: [place].into_iter().collect() };
        TakeRequest { demands: [both, DemandRequest::default()].into_iter().collect(), sent: 0 }
    }

    fn arguments(cmd: &Cmd) -> String {
        String::from_utf8_lossy(&cmd.get_packed_command()).split("\r\n").skip(2).step_by(2).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn arguments_are_in_the_order_of_the_script() {
        let mut cmd = Cmd::new();
        request().write(&mut cmd);
        assert_eq!(arguments(&cmd), "2 1 1 60 2 3 4 5 6 1 1 8 9 10 11 12 13 0 0");
        let mut cmd = Cmd::new();
        for demand in request().demands {
            for count in &demand.counts {
                write_lease(&mut cmd, count);
            }
        }
        assert_eq!(arguments(&cmd), "1 1 0 60 2 3 4 5 6 1 1 8 9");
    }

    #[test]
    fn replies_are_read_in_the_order_of_the_script() {
        let replies = request().read_reply(&[1, 7, -1, 9, 0, 2]).unwrap();
        let count = CountReply { used: Amount::from_millionths(7), wait: Wait::Never, leased: Amount::from_millionths(9) };
        assert_eq!(replies[0].status, DemandStatus::Taken);
        assert_eq!((&replies[0].counts[..], &replies[0].places[..]), (&[count][..], &[false][..]));
        assert_eq!(replies[1].status, DemandStatus::NotAsked);
        assert_eq!(request().read_reply(&[0, -7, 3, -9, 1, 2]).unwrap()[0].counts[0].wait, Wait::After(Micros(3)));
        for wrong in [&[][..], &[1, 7, 0, 9, 1], &[1, 7, 0, 9, 1, 2, 0], &[3, 7, 0, 9, 1, 2], &[0, 7, 0, 9, 1, 2]] {
            assert!(request().read_reply(wrong).is_err(), "{wrong:?}");
        }
    }
}
